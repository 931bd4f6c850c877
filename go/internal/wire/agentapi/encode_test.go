package agentapi_test

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/wire/agentapi"
	"hercules/internal/wire/codec"
)

// TestZeroValuesHaveNoNull: forgetting to fill a slice or a map must not give a document with null where the
// agent refuses it. What the encoder writes, the strict decoder reads.
func TestZeroValuesHaveNoNull(t *testing.T) {
	t.Parallel()
	id := agentapi.ID("7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e")
	docs := []any{
		&agentapi.AgentInfo{}, &agentapi.Hello{StartInfo: agentapi.StartInfo{ID: id}}, &agentapi.ServiceInfo{},
		&agentapi.CreateAgentSession{}, &agentapi.BuildTask{ID: id}, &agentapi.EffectTask{ID: id, ProjectID: id},
		&agentapi.EvaluateTask{ID: id, Selector: agentapi.Selector{ConfigOrLegacy: &agentapi.Unit{}}},
		&agentapi.Selector{OnPush: &agentapi.OnPush{}}, &agentapi.Selector{OnSchedule: &agentapi.OnSchedule{}},
		&agentapi.EvaluateEvent{Attribute: &agentapi.AttributeEvent{Typ: agentapi.Regular}},
		&agentapi.EvaluateEvent{AttributeEffect: &agentapi.AttributeEffectEvent{}},
		&agentapi.EvaluateEvent{AttributeError: &agentapi.AttributeErrorEvent{}},
		&agentapi.EvaluateEvent{AttributeIFD: &agentapi.AttributeIFDEvent{}},
		&agentapi.EvaluateEvent{Message: &agentapi.Message{Typ: agentapi.ErrorMessage}},
		&agentapi.EvaluateEvent{DerivationInfo: &agentapi.DerivationInfo{}},
		&agentapi.EvaluateEvent{DerivationInfo: &agentapi.DerivationInfo{
			InputDerivations: agentapi.Map[string, agentapi.List[string]]{"a": nil},
			Outputs:          agentapi.Map[string, agentapi.DerivationInfoOutput]{"out": {}},
		}},
		&agentapi.EvaluateEvent{BuildRequired: &agentapi.BuildRequired{}}, &agentapi.EvaluateEvent{BuildRequest: &agentapi.BuildRequest{}},
		&agentapi.EvaluateEvent{SubstitutionQueryResult: &agentapi.SubstitutionQueryResult{}},
		&agentapi.EvaluateEvent{JobConfig: &agentapi.JobConfig{SourceCaches: new(agentapi.List[string])}},
		&agentapi.EvaluateEvent{OnPushHandlerEvent: &agentapi.OnPushHandlerEvent{}},
		&agentapi.EvaluateEvent{OnScheduleHandlerEvent: &agentapi.OnScheduleHandlerEvent{}},
		&agentapi.EvaluateEvent{PushedAll: &agentapi.PushedAll{}},
		&agentapi.BuildEvent{OutputInfo: &agentapi.OutputInfo{}}, &agentapi.BuildEvent{Done: new(bool)},
		&agentapi.LogMessage{LogEntries: new(agentapi.List[agentapi.LogEntry])}, &agentapi.LogMessage{End: &agentapi.LogEnd{}},
		&agentapi.LogMessage{LogEntries: &agentapi.List[agentapi.LogEntry]{{Kind: agentapi.LogStart}, {Kind: agentapi.LogResult}, {Kind: agentapi.LogStop}, {Kind: agentapi.LogMsg}}},
		&agentapi.SecretRef{GitToken: &agentapi.EmptyRecord{}},
	}
	for _, doc := range docs {
		b, err := codec.Marshal(doc)
		if err != nil {
			t.Errorf("%T: %v", doc, err)
			continue
		}
		if err := codec.Unmarshal(b, reflect.New(reflect.TypeOf(doc).Elem()).Interface()); err != nil {
			t.Errorf("%T: %s: %v", doc, b, err)
		}
		// encoding/json, should someone use it, writes the same.
		std, err := json.Marshal(doc)
		if err != nil || codec.Unmarshal(std, reflect.New(reflect.TypeOf(doc).Elem()).Interface()) != nil {
			t.Errorf("%T: encoding/json writes %s, %v", doc, std, err)
		}
	}
}

// TestEncoderRefuses: what the agent would refuse, again and again, is never written.
func TestEncoderRefuses(t *testing.T) {
	t.Parallel()
	text := "x"
	for want, doc := range map[string]any{
		"TaskStatus has no value":                            &agentapi.TaskStatus{},
		"TaskStatus is both Terminated and Exceptional":      &agentapi.TaskStatus{Terminated: &agentapi.Unit{}, Exceptional: &text},
		"Selector has no value":                              &agentapi.ServicePayload{StartEvaluation: &agentapi.EvaluateTask{ID: agentapi.NewID()}},
		".StartBuild.id: not a lower-case UUID":              &agentapi.ServicePayload{StartBuild: &agentapi.BuildTask{}},
		".id: not a lower-case UUID":                         &agentapi.StartInfo{ID: agentapi.ID(strings.ToUpper(string(agentapi.NewID())))},
		`.typ: "" is no AttributeType`:                       &agentapi.AttributeEvent{},
		`.typ: "Warning" is no MessageType`:                  &agentapi.Message{Typ: "Warning"},
		`.dayOfWeek[0]: "Monday" is no DayOfWeek`:            &agentapi.TimeConstraints{DayOfWeek: &agentapi.List[agentapi.DayOfWeek]{"Monday"}},
		".LogEntries[0]: a log entry without kind":           &agentapi.LogMessage{LogEntries: &agentapi.List[agentapi.LogEntry]{{}}},
		".startTime: the year 12000 has no encoding":         &agentapi.StartInfo{ID: agentapi.NewID(), StartTime: time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)},
		".labels.a: the document ends within a string":       &agentapi.AgentInfo{Labels: map[string]json.RawMessage{"a": []byte(`"`)}},
		".labels.a: data after the end of the document at b": &agentapi.AgentInfo{Labels: map[string]json.RawMessage{"a": []byte(`1 2`)}},
	} {
		b, err := codec.Marshal(doc)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %s, %v", want, b, err)
		}
	}
}

func TestErrorsSayWhereAndWhat(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"tag":"StartBuild","contents":{"id":"7c1e0002-52f4-4a6b-9b0d-3e8f6a21001e","derivationPath":"d","logToken":"secret","inputDerivationOutputPaths":["a",7]}}`: `decoding *agentapi.ServicePayload: .StartBuild.inputDerivationOutputPaths[1]: a number where a string should be`,
		`{"contents":{"taskId":"secret"},"tag":"Cancel"}`: `decoding *agentapi.ServicePayload: .Cancel.taskId: not a UUID with hyphens`,
		`{"contents":{},"tag":"Cancel"}`:                  `decoding *agentapi.ServicePayload: .Cancel: key "taskId" is missing`,
		`{"tag":"Cancel"}`:                                `decoding *agentapi.ServicePayload: ServicePayload Cancel without contents`,
	} {
		err := codec.Unmarshal([]byte(in), &agentapi.ServicePayload{})
		if err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"2026-02-01T09:30:15Z":               "2026-02-01T09:30:15Z",
		"2026-02-01 09:30Z":                  "2026-02-01T09:30:00Z",
		"2026-02-01T09:30:15.120000000000Z":  "2026-02-01T09:30:15.12Z",
		"2026-02-01T09:30:15.123456789999Z":  "2026-02-01T09:30:15.123456789Z",
		"2026-02-01T09:30:15+0530":           "2026-02-01T04:00:15Z",
		"2026-02-01T09:30:15-05:30":          "2026-02-01T15:00:15Z",
		"2026-02-01T09:30:15.1234567890123Z": "",
		"2026-02-01T09:30:15 Z":              "",
		"2026-02-01T09:30:15":                "",
		"2026-02-01":                         "",
		"2026-02-30T09:30:15Z":               "",
		"2026-02-01T09:30:15.12.3Z":          "",
		"2026-02-01T09:30.5Z":                "",
		"T":                                  "",
		"":                                   "",
	} {
		var got time.Time
		err := codec.Unmarshal(codec.AppendString(nil, in), &got)
		if want == "" {
			if err == nil {
				t.Errorf("%q: got %v", in, got)
			}
			continue
		}
		out, _ := codec.Marshal(got)
		if err != nil || string(out) != `"`+want+`"` {
			t.Errorf("%q: got %s, %v, want %s", in, out, err, want)
		}
	}
}

func TestIntegers(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"7": "7", "7.0": "7", "7e0": "7", "70e-1": "7", "0.7E+1": "7", "-0": "0", "0.000": "0", "0e1024": "0", "1.5e1": "15",
		"9223372036854775807": "9223372036854775807", "-9223372036854775808": "-9223372036854775808",
		"9223372036854775807.000": "9223372036854775807", "922337203685477580.7e1": "9223372036854775807",
		"7.5": "", "70e-2": "", "9223372036854775808": "", "-9223372036854775809": "", "1e19": "", "1e1025": "", `"7"`: "",
		"07": "", "+7": "", "7.": "", ".7": "", "7e": "", "-": "", "null": "", "true": "", "1e999999999999": "", "0x10": "", "NaN": "",
	} {
		var got int64
		err := codec.Unmarshal([]byte(in), &got)
		if (err != nil) != (want == "") || (err == nil && fmt.Sprint(got) != want) {
			t.Errorf("%s: got %d, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]uint64{"18446744073709551615": math.MaxUint64, "-0": 0, "1.8446744073709551615e19": math.MaxUint64} {
		var got uint64
		if err := codec.Unmarshal([]byte(in), &got); err != nil || got != want {
			t.Errorf("%s: got %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"18446744073709551616", "-1", "1e20", "0.5"} {
		var got uint64
		if err := codec.Unmarshal([]byte(in), &got); err == nil {
			t.Errorf("%s: got %d", in, got)
		}
	}
}

func TestStrings(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain": `"plain"`, "q\"b\\": `"q\"b\\"`, "\x00\x1b[0m\n\r\t\x7f": "\"\\u0000\\u001b[0m\\n\\r\\t\x7f\"", "é€😀\u2028<>&": "\"é€😀\u2028<>&\"",
		"a\xffb\xc3": "\"a\uFFFDb\uFFFD\"", "\xed\xa0\x80": "\"\uFFFD\uFFFD\uFFFD\"", "": `""`, "\uFFFD": "\"\uFFFD\"",
	} {
		got, err := codec.Marshal(in)
		if err != nil || string(got) != want {
			t.Errorf("%q: got %s, %v, want %s", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		`"\u0041\n\/\b\f\r\t\"\\"`: "A\n/\b\f\r\t\"\\", `"\ud83d\ude00"`: "😀", "\"a\xffb\"": "a\uFFFDb", `"\uFFFD"`: "\uFFFD",
	} {
		var got string
		if err := codec.Unmarshal([]byte(in), &got); err != nil || got != want {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{`"\ud83d"`, `"\ud83dx"`, `"\ud83d\u0041"`, `"\ude00\ud83d"`, `"\u12"`, `"\x"`, `"\`, `"`, "\"\n\""} {
		var got string
		if err := codec.Unmarshal([]byte(in), &got); err == nil {
			t.Errorf("%s: got %q", in, got)
		}
	}
}

func TestFirstOfTwoKeysCounts(t *testing.T) {
	t.Parallel()
	var end agentapi.LogMessage
	if err := codec.Unmarshal([]byte(`{"i":1,"tag":"End","i":2,"ms":3,"tag":"Hello"}`), &end); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(agentapi.LogMessage{End: &agentapi.LogEnd{I: 1, MS: 3}}, end); d != "" {
		t.Error(d)
	}
	var m agentapi.Map[string, string]
	if err := codec.Unmarshal([]byte(`{"a":"1","a":"2"}`), &m); err != nil || m["a"] != "1" {
		t.Error(m, err)
	}
}

func TestLogEntryDropsWhatIsNotOfItsKind(t *testing.T) {
	t.Parallel()
	var e agentapi.LogEntry
	if err := codec.Unmarshal([]byte(`{"text":"no","fields":[1],"act":5,"parent":7,"msg":"yes","level":1,"ms":2,"i":3,"tag":"Msg"}`), &e); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(agentapi.LogEntry{Kind: agentapi.LogMsg, I: 3, MS: 2, Level: 1, Text: "yes"}, e); d != "" {
		t.Error(d)
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for v, ok := range map[agentapi.Version]bool{{2, 0}: true, {2, 1}: true, {3, 0}: true, {1, 9}: false, {1, 0}: false, {-1, 7}: false} {
		if err := (agentapi.ServiceInfo{Version: v}).CheckVersion(); (err == nil) != ok {
			t.Errorf("%v: %v", v, err)
		}
	}
}

func derivationInfo(i int) agentapi.EvaluateEvent {
	path := fmt.Sprintf("/nix/store/%032d-some-package-%d.drv", i, i)
	out := strings.TrimSuffix(path, ".drv")
	info := &agentapi.DerivationInfo{
		DerivationPath: path, Platform: "x86_64-linux",
		InputDerivations: agentapi.Map[string, agentapi.List[string]]{}, InputSources: agentapi.List[string]{"/nix/store/8xaf8ddd3ydpw2ib7kim0k5ppvrmxvdj-builder.sh"},
		Outputs: agentapi.Map[string, agentapi.DerivationInfoOutput]{"out": {Path: &out}},
	}
	for j := range 6 {
		info.InputDerivations[fmt.Sprintf("/nix/store/%032d-input-%d.drv", i+j, j)] = agentapi.List[string]{"out"}
	}
	return agentapi.EvaluateEvent{DerivationInfo: info}
}

func events() []agentapi.EvaluateEvent {
	list := make([]agentapi.EvaluateEvent, 1000)
	for i := range list {
		list[i] = derivationInfo(i)
	}
	return list
}

func logMessage() *agentapi.LogMessage {
	list := make(agentapi.List[agentapi.LogEntry], 100)
	for i := range list {
		list[i] = agentapi.LogEntry{
			Kind: agentapi.LogResult, I: uint64(i), MS: 12345, Act: 9288674231451649, Type: 101, //nolint:gosec // small
			Fields: []agentapi.LogField{agentapi.TextField("\x1b[32mok\x1b[0m compiling src/some/dir/file.c with -O2 -g")},
		}
	}
	return &agentapi.LogMessage{LogEntries: &list}
}

func benchEncode(b *testing.B, doc any, items int) {
	var buf []byte
	var err error
	for b.Loop() {
		if buf, err = codec.Append(buf[:0], doc); err != nil {
			b.Fatal(err)
		}
	}
	report(b, len(buf), items)
}

func benchDecode[T any](b *testing.B, doc any, items int) {
	buf, err := codec.Marshal(doc)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var x T
		if err := codec.Unmarshal(buf, &x); err != nil {
			b.Fatal(err)
		}
	}
	report(b, len(buf), items)
}

func report(b *testing.B, size, items int) {
	b.SetBytes(int64(size))
	b.ReportMetric(float64(b.N)*float64(items)/b.Elapsed().Seconds(), "items/s")
}

func BenchmarkEncodeDerivationInfo(b *testing.B) { list := events(); benchEncode(b, &list, len(list)) }

func BenchmarkDecodeDerivationInfo(b *testing.B) {
	list := events()
	benchDecode[[]agentapi.EvaluateEvent](b, &list, len(list))
}
func BenchmarkEncodeLog(b *testing.B) { benchEncode(b, logMessage(), 100) }
func BenchmarkDecodeLog(b *testing.B) { benchDecode[agentapi.LogMessage](b, logMessage(), 100) }
