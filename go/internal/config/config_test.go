package config_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/config"
	"hercules/internal/config/schema"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func noEnv(string) string { return "" }

func text(s string) *string { return &s }

func TestDefaults(t *testing.T) {
	t.Parallel()
	want := &config.Config{
		APIBaseURL: "https://hercules-ci.com", Labels: map[string]json.RawMessage{}, DrainTimeoutSeconds: 60,
		BaseDirectory: "/var/lib/x", WorkDirectory: "/var/lib/x/work", StaticSecretsDirectory: "/var/lib/x/secrets",
		ClusterJoinTokenPath: "/var/lib/x/secrets/cluster-join-token.key", BinaryCachesPath: "/var/lib/x/secrets/binary-caches.json",
		SecretsJSONPath: "/var/lib/x/secrets/secrets.json", NixSettings: map[string]string{},
		EffectMountables: map[string]config.Mountable{}, LogLevel: "InfoS", NixVerbosity: "Talkative",
	}
	for name, in := range map[string]string{
		"a.toml": "baseDirectory = '/var/lib/x'", "a": "baseDirectory = '/var/lib/x/'", "a.json": `{"baseDirectory": "/var/lib/x"}`,
		"nulls.json": `{"baseDirectory": "/var/lib/x", "labels": null, "concurrentTasks": null, "logLevel": null, "apiBaseUrl": null,
			"workDirectory": null, "nixSettings": {"cores": null}, "remotePlatformsWithSameFeatures": null, "effectMountables": null}`,
	} {
		got, err := config.ParseOnly(name, []byte(in), noEnv)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestBothFormatsSayTheSame(t *testing.T) {
	t.Parallel()
	fromTOML := parseFile(t, "full.toml")
	fromJSON := parseFile(t, "full.json")
	if diff := cmp.Diff(fromTOML, fromJSON, cmp.Transformer("json", func(r json.RawMessage) any {
		var v any
		if err := json.Unmarshal(r, &v); err != nil {
			t.Error(err)
		}
		return v
	})); diff != "" {
		t.Error(diff)
	}
	yes := true
	want := map[string]config.Mountable{
		"hosts": {Source: "/etc/hosts", ReadOnly: true, Condition: config.Condition{Const: &yes}},
		"kvm":   {Source: "/dev/kvm", Condition: config.Condition{IsDefaultBranch: true}},
		"data":  {Source: "/data", Condition: config.Condition{IsOwner: text("acme")}},
	}
	if diff := cmp.Diff(want, fromJSON.EffectMountables); diff != "" {
		t.Error(diff)
	}
	if fromJSON.ConcurrentTasks != 7 || fromJSON.APIBaseURL != "https://ci.example.org/base" || fromJSON.EvaluationMemory() != 4096<<20 ||
		fromJSON.AttributeTimeout().String() != "10m0s" || fromJSON.WorkDirectory != "/srv/work" || fromJSON.SecretsJSONPath != "/run/secrets/secrets.json" {
		t.Errorf("got %+v", fromJSON)
	}
}

func parseFile(t *testing.T, name string) *config.Config {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(name, data, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNullInLabelsIsData(t *testing.T) {
	t.Parallel()
	c, err := config.Parse("a.json", []byte(`{"baseDirectory":"/x","labels":{"a":null,"b":{"c":[null,1.50]}}}`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]json.RawMessage{"a": json.RawMessage("null"), "b": json.RawMessage(`{"c":[null,1.50]}`)}
	if diff := cmp.Diff(want, c.Labels); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironmentOfBaseURL(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		env        map[string]string
		file, want string
	}{
		"first":     {map[string]string{"HERCULES_CI_API_BASE_URL": "http://a", "HERCULES_API_BASE_URL": "http://b"}, "", "http://a"},
		"second":    {map[string]string{"HERCULES_API_BASE_URL": "http://b/"}, "", "http://b"},
		"empty":     {map[string]string{"HERCULES_CI_API_BASE_URL": ""}, "", "https://hercules-ci.com"},
		"file wins": {map[string]string{"HERCULES_CI_API_BASE_URL": "nonsense"}, "apiBaseUrl = 'http://c:80/x/'", "http://c:80/x"},
	} {
		got, err := config.Parse("a", []byte("baseDirectory='/x'\n"+c.file), func(k string) string { return c.env[k] })
		if err != nil || got.APIBaseURL != c.want {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	_, err := config.Parse("a", []byte("baseDirectory='/x'"), func(string) string { return "ci.example.org" })
	if err == nil || !strings.HasPrefix(err.Error(), `a: $HERCULES_CI_API_BASE_URL: expected a URL`) {
		t.Errorf("a bad URL in the environment: %v", err)
	}
}

// TestMessages compares what is said about each file testdata/bad/* with the file beside it.
func TestMessages(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/bad/*")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, file := range files {
		if strings.HasSuffix(file, ".golden") {
			continue
		}
		checked++
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = config.Parse(filepath.Base(file), data, noEnv)
			if _, ok := errors.AsType[*schema.Error](err); !ok {
				t.Fatalf("got %v", err)
			}
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(file+".golden", []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if checked < 5 {
		t.Errorf("only %d files", checked)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.toml")
	if _, err := config.Load(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("baseDirectory = 'state'"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.ConcurrentTasks < 2 || c.EvaluationWorkers < 1 || !filepath.IsAbs(c.WorkDirectory) {
		t.Errorf("got %+v", c)
	}
	if err := os.WriteFile(path, []byte("logLevel = 'info'"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = config.Load(path); err == nil || strings.Count(err.Error(), path) != 2 {
		t.Errorf("each of two problems has to name the file: %v", err)
	}
}

// TestParseFitsToTheMachine: a content that comes from elsewhere than a file is as complete as a file.
func TestParseFitsToTheMachine(t *testing.T) {
	t.Parallel()
	c, err := config.Parse("a", []byte("baseDirectory='/x'"), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if c.ConcurrentTasks < 2 || c.EvaluationWorkers < 1 {
		t.Errorf("got %+v", c)
	}
}

func TestDerivedDefaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cpus, memory           int
		set                    config.Config
		tasks, workers, worker int
	}{
		{cpus: 1, memory: 8192, tasks: 2, workers: 1, worker: 6144},
		{cpus: 2, memory: 8192, tasks: 2, workers: 2, worker: 3072},
		{cpus: 64, memory: 65536, tasks: 64, workers: 64, worker: 2048},
		{cpus: 8, memory: 1024, tasks: 8, workers: 8, worker: 768},
		{cpus: 4, memory: 0, tasks: 4, workers: 4, worker: 0},
		{cpus: 4, memory: 8192, set: config.Config{ConcurrentTasks: 1, EvaluationWorkers: 3, EvaluationMemoryMiB: 200}, tasks: 1, workers: 3, worker: 200},
	} {
		got := c.set
		got.FitTo(c.cpus, c.memory)
		if int(got.ConcurrentTasks) != c.tasks || got.EvaluationWorkers != c.workers || got.EvaluationMemoryMiB != c.worker {
			t.Errorf("%d CPUs, %d MiB: got %+v", c.cpus, c.memory, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/full.*", "testdata/bad/*.toml", "testdata/bad/*.json"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatal(pattern, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(strings.HasSuffix(file, ".json"), data)
		}
	}
	f.Fuzz(func(t *testing.T, isJSON bool, data []byte) {
		name := "a.toml"
		if isJSON {
			name = "a.json"
		}
		c, err := config.Parse(name, data, noEnv)
		if err != nil {
			if _, ok := errors.AsType[*schema.Error](err); !ok {
				t.Errorf("an error without a place: %v", err)
			}
			return
		}
		if !filepath.IsAbs(c.BaseDirectory) || c.LogLevel == "" || c.EffectMountables == nil || !strings.HasPrefix(c.APIBaseURL, "http") {
			t.Errorf("got %+v", c)
		}
	})
}
