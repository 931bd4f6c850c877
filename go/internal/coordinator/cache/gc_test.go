package cache_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/coordinator/cache"
)

// age makes a path look as if it had last been wanted some time ago.
func (s *server) age(by time.Duration, objects ...object) {
	s.t.Helper()
	for _, o := range objects {
		for _, file := range []string{o.hash() + ".narinfo", o.info.URL} {
			s.ageFile(by, file)
		}
	}
}

func (s *server) ageFile(by time.Duration, file string) {
	s.t.Helper()
	then := time.Now().Add(-by)
	if err := os.Chtimes(filepath.Join(s.dir, "cache", file), then, then); err != nil {
		s.t.Fatal(err)
	}
}

// collect collects and gives the names of what is still there.
func (s *server) collect(p cache.Policy, all map[string]object) (cache.Collected, []string) {
	s.t.Helper()
	done, err := s.c.Collect(s.t.Context(), p)
	if err != nil {
		s.t.Fatal(err)
	}
	var left []string
	for _, name := range []string{"lib", "tool", "old", "app", "lone", "new"} {
		// Not by asking the server: that would be an access.
		_, err := os.Stat(filepath.Join(s.dir, "cache", all[name].hash()+".narinfo"))
		_, narErr := os.Stat(filepath.Join(s.dir, "cache", all[name].info.URL))
		if (err == nil) != (narErr == nil) {
			s.t.Errorf("%s: narinfo %v, NAR %v", name, err, narErr)
		}
		if err == nil {
			left = append(left, name)
		}
	}
	sound(s.t, s.c)
	return done, left
}

// family pushes: app → tool → lib ← old, lone, new. Ages in days: lib 40, tool 30, old 30, lone 20, app 5, new 0.
func family(t *testing.T) (*server, map[string]object) {
	t.Helper()
	s := newServer(t)
	const day = 24 * time.Hour
	lib := makeObject(t, "lib", randomBytes(100_000, 1))
	tool := makeObject(t, "tool", randomBytes(100_000, 2), lib)
	old := makeObject(t, "old", randomBytes(100_000, 3), lib)
	app := makeObject(t, "app", randomBytes(100_000, 4), tool)
	lone := makeObject(t, "lone", randomBytes(100_000, 5))
	fresh := makeObject(t, "new", randomBytes(100_000, 6))
	s.push(lib, tool, old, app, lone, fresh)
	s.age(40*day, lib)
	s.age(30*day, tool, old)
	s.age(20*day, lone)
	s.age(5*day, app)
	return s, map[string]object{"lib": lib, "tool": tool, "old": old, "app": app, "lone": lone, "new": fresh}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name   string
		policy func(all map[string]object) cache.Policy
		left   []string
	}{
		{"nothing", func(map[string]object) cache.Policy { return cache.Policy{} }, []string{"lib", "tool", "old", "app", "lone", "new"}},
		{"age", func(map[string]object) cache.Policy { return cache.Policy{MaxAge: 10 * day} }, []string{"lib", "tool", "app", "new"}},
		{"age, all", func(map[string]object) cache.Policy { return cache.Policy{MaxAge: day} }, []string{"new"}},
		{"age and root", func(all map[string]object) cache.Policy {
			return cache.Policy{MaxAge: day, Roots: []string{all["old"].info.StorePath}}
		}, []string{"lib", "old", "new"}},
		{"only roots", func(all map[string]object) cache.Policy {
			return cache.Policy{OnlyRoots: true, Roots: []string{all["tool"].info.StorePath}}
		}, []string{"lib", "tool", "new"}}, // new is within the grace
		{"size, one must go", func(map[string]object) cache.Policy { return cache.Policy{MaxSize: 550_000} }, []string{"lib", "tool", "app", "lone", "new"}},
		{"size", func(map[string]object) cache.Policy { return cache.Policy{MaxSize: 420_000} }, []string{"lib", "tool", "app", "new"}},
		{"size, little", func(map[string]object) cache.Policy { return cache.Policy{MaxSize: 1} }, []string{"new"}},
		{"size and root", func(all map[string]object) cache.Policy {
			return cache.Policy{MaxSize: 1, Roots: []string{all["lone"].info.StorePath}}
		}, []string{"lone", "new"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, all := family(t)
			p := tt.policy(all)
			before := s.c.Stats()
			p.DryRun = true
			would, left := s.collect(p, all)
			if len(left) != len(all) || s.c.Stats() != before {
				t.Errorf("a dry run changed something: %v", left)
			}
			p.DryRun = false
			done, left := s.collect(p, all)
			if diff := cmp.Diff(tt.left, left); diff != "" {
				t.Errorf("left:\n%s", diff)
			}
			if diff := cmp.Diff(would, done); diff != "" {
				t.Errorf("the dry run had another result:\n%s", diff)
			}
			after := s.c.Stats()
			if after.Bytes != before.Bytes-done.Bytes || after.Paths != int64(len(tt.left)) || done.Kept != after.Paths {
				t.Errorf("%+v after %+v, %+v", after, before, done)
			}
			if got := diskUse(t, s); got != after.Bytes {
				t.Errorf("%d bytes are there, %d counted", got, after.Bytes)
			}
		})
	}
}

func diskUse(t *testing.T, s *server) (sum int64) {
	t.Helper()
	err := filepath.Walk(filepath.Join(s.dir, "cache"), func(_ string, st os.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() && st.Name() != "nix-cache-info" {
			sum += st.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestCollectOrphans(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o, young, shared := makeObject(t, "o", []byte("1")), makeObject(t, "young", []byte("2")), makeObject(t, "shared", []byte("3"))
	twin := makeObject(t, "twin", []byte("3"))
	s.want(200, "PUT", "/"+o.info.URL, o.file)
	s.want(200, "PUT", "/"+young.info.URL, young.file)
	s.want(200, "PUT", "/"+o.hash()+".ls", []byte("{}"))
	s.want(200, "PUT", "/log/"+o.hash()+"-x.drv", []byte("log"))
	s.push(shared, twin)
	s.ageFile(100*time.Hour, o.info.URL)
	s.ageFile(100*time.Hour, o.hash()+".ls")
	s.ageFile(100*time.Hour, "log/"+o.hash()+"-x.drv")
	s.age(100*time.Hour, shared)
	s.age(0, twin)
	done, err := s.c.Collect(t.Context(), cache.Policy{MaxAge: 50 * time.Hour, Roots: []string{"/nix/store/x"}})
	if err != nil {
		t.Fatal(err)
	}
	if done.Files != 3 || done.Paths != 0 || len(done.MissingRoots) != 1 { // shared has its twin's NAR, which is young
		t.Errorf("%+v", done)
	}
	s.want(404, "GET", "/"+o.info.URL, nil)
	s.want(200, "GET", "/"+young.info.URL, nil)
	s.check(twin)
	s.want(424, "PUT", "/"+o.hash()+".narinfo", o.info.Append(nil))
	s.push(o)
	s.check(o)
}

// TestCollectTouched finds that being asked for makes young.
func TestCollectTouched(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]func(s *server, o object){
		"narinfo": func(s *server, o object) { s.want(200, "GET", "/"+o.hash()+".narinfo", nil) },
		"NAR":     func(s *server, o object) { s.want(200, "GET", "/"+o.info.URL, nil) },
		"bulk":    func(s *server, o object) { s.json(200, "POST", api+"/narinfo", []string{o.hash()}, nil) },
		"push":    func(s *server, o object) { s.push(o) },
	} {
		s := newServer(t)
		o := makeObject(t, "o", []byte("1"))
		s.push(o)
		s.age(100*time.Hour, o)
		want(s, o)
		if done, err := s.c.Collect(t.Context(), cache.Policy{MaxAge: time.Hour}); err != nil || done.Paths != 0 {
			t.Errorf("%s: %+v %v", name, done, err)
		}
		s.age(100*time.Hour, o)
		if done, err := s.c.Collect(t.Context(), cache.Policy{MaxAge: time.Hour}); err != nil || done.Paths != 1 {
			t.Errorf("%s: %+v %v", name, done, err)
		}
	}
}

// TestCollectWhileServing reads a NAR that is removed, and pushes chains while everything else is removed.
func TestCollectWhileServing(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	big := makeObject(t, "big", randomBytes(20<<20, 1))
	s.push(big)
	resp, err := http.Get(s.url + "/" + big.info.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.age(100*time.Hour, big)
	if done, err := s.c.Collect(t.Context(), cache.Policy{OnlyRoots: true}); err != nil || done.Paths != 1 {
		t.Fatalf("%+v %v", done, err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != int64(len(big.file)) {
		t.Errorf("read %d of %d: %v", n, len(big.file), err)
	}

	done := make(chan struct{})
	var pushers, collector sync.WaitGroup
	collector.Go(func() {
		for {
			if _, err := s.c.Collect(t.Context(), cache.Policy{OnlyRoots: true, Grace: 1}); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i := range 4 {
		pushers.Go(func() {
			var last []object
			for j := range 25 {
				o := makeObject(t, fmt.Sprintf("chain-%d-%d", i, j), randomBytes(1000, uint64(100*i+j)), last...)
				for _, put := range []struct {
					path string
					body []byte
				}{{o.info.URL, o.file}, {o.hash() + ".narinfo", o.info.Append(nil)}} {
					r, err := s.try("PUT", "/"+put.path, newReader(put.body))
					if err != nil {
						t.Error(err)
						return
					}
					if r.status == 424 { // what it needs has been collected: without grace that is right
						last = nil
						break
					}
					if r.status != 200 {
						t.Errorf("%s: %v", put.path, r)
					}
					last = []object{o}
				}
			}
		})
	}
	pushers.Wait()
	close(done)
	collector.Wait()
	sound(t, s.c)
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a := makeObject(t, "a", randomBytes(1000, 1))
	b := makeObject(t, "b", randomBytes(1000, 2), a)
	c := makeObject(t, "c", randomBytes(1000, 3), b)
	d := makeObject(t, "d", randomBytes(1000, 4), a)
	s.push(a, b, c, d)
	sound(t, s.c)
	file := filepath.Join(s.dir, "cache", b.info.URL)
	broken := append([]byte(nil), b.file...)
	broken[len(broken)-10] ^= 1
	if err := os.WriteFile(file, broken, 0o644); err != nil {
		t.Fatal(err)
	}
	problems, err := s.c.Verify(t.Context(), cache.VerifyOptions{Remove: true})
	if err != nil || len(problems) != 1 || problems[0].Path != b.info.StorePath {
		t.Fatalf("%v %v", problems, err)
	}
	if s.has(b) || s.has(c) || !s.has(a) || !s.has(d) {
		t.Error("want b gone, and c, which refers to it")
	}
	s.push(b, c)
	s.check(b)
	sound(t, s.c)

	info := filepath.Join(s.dir, "cache", d.hash()+".narinfo")
	st, err := os.Stat(info)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(info, make([]byte, st.Size()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.c.Collect(t.Context(), cache.Policy{}); err == nil {
		t.Error("collected although a narinfo cannot be read")
	}
	if problems, err := s.c.Verify(t.Context(), cache.VerifyOptions{Remove: true}); err != nil || len(problems) != 1 {
		t.Fatalf("%v %v", problems, err)
	}
	sound(t, s.c)
	s.push(d)
	if got, want := s.c.Stats().Bytes, diskUse(t, s); got != want {
		t.Errorf("%d bytes counted, %d are there", got, want)
	}
}
