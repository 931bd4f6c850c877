package cache_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"hercules/internal/coordinator/cache"
)

// process is the test binary as a server that can be killed.
type process struct {
	cmd *exec.Cmd
	url string
}

func startServer(t *testing.T, dir string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), serverVariable+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p.url = strings.TrimSpace(line)
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// TestKill kills the server at random moments of uploads by both protocols, and looks at what is there.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	var objects []object
	total := int64(0)
	for i := range 12 {
		var refs []object
		if i > 0 {
			refs = objects[i-1 : i]
		}
		o := makeObject(t, fmt.Sprintf("killed-%d", i), randomBytes(400_000, uint64(i)), refs...)
		if i%4 == 3 {
			o = makeObject(t, fmt.Sprintf("killed-%d", i), randomBytes(6<<20, uint64(i)), refs...)
		}
		objects = append(objects, o)
		total += int64(len(o.file))
	}
	visible := 0
	for round := range rounds {
		p := startServer(t, dir)
		// The moment is a number of bytes on the wire, in both directions.
		moment := &bomb{left: rand.Int64N(2 * total), kill: func() { _ = p.cmd.Process.Signal(syscall.SIGKILL) }}
		client := &http.Client{Transport: &http.Transport{}}
		s := &killed{url: p.url, client: client, bomb: moment}
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() { s.pushAll(objects, i == 1) })
		}
		wg.Wait()
		client.CloseIdleConnections()
		p.kill()

		o := options()
		c, err := cache.Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		sound(t, c)
		if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
			t.Errorf("round %d: temporary files are left: %v %v", round, left, err)
		}
		now := int(c.Stats().Paths)
		if now < visible {
			t.Errorf("round %d: %d paths, %d before", round, now, visible)
		}
		visible = now
		if visible == len(objects) { // begin again
			if done, err := c.Collect(t.Context(), cache.Policy{OnlyRoots: true, Grace: 1}); err != nil || done.Kept != 0 {
				t.Errorf("%+v %v", done, err)
			}
			visible = 0
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The next run finishes.
	s := newServerIn(t, dir)
	s.push(objects...)
	for _, o := range objects {
		s.check(o)
	}
}

// bomb kills the server when so many bytes have gone by.
type bomb struct {
	left int64
	once sync.Once
	kill func()
}

func (b *bomb) count(n int) {
	if atomic.AddInt64(&b.left, -int64(n)) < 0 {
		b.once.Do(b.kill)
	}
}

type fuse struct {
	r io.Reader
	b *bomb
}

func (f fuse) Read(p []byte) (int, error) {
	n, err := f.r.Read(p[:min(len(p), 10_000)])
	f.b.count(n)
	return n, err
}

// killed is a client of a server that dies.
type killed struct {
	url    string
	client *http.Client
	bomb   *bomb
}

var errDead = errors.New("no good answer")

func (k *killed) do(method, url string, body []byte, headers ...string) ([]byte, http.Header, error) {
	if !strings.HasPrefix(url, "http") {
		url = k.url + url
	}
	req, err := http.NewRequest(method, url, fuse{bytes.NewReader(body), k.bomb})
	if err != nil {
		return nil, nil, err
	}
	req.ContentLength = int64(len(body))
	req.Header.Set("Authorization", "Bearer "+writeToken)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	k.bomb.count(500) // an answer is a moment too
	if resp.StatusCode != 200 {
		return nil, nil, errDead
	}
	return data, resp.Header, err
}

func (k *killed) pushAll(objects []object, cachix bool) {
	for _, o := range objects {
		var err error
		if cachix {
			err = k.pushCachix(o)
		} else if _, _, err = k.do("PUT", "/"+o.info.URL, o.file); err == nil {
			_, _, err = k.do("PUT", "/"+o.hash()+".narinfo", o.info.Append(nil))
		}
		if err != nil {
			return
		}
	}
}

func (k *killed) pushCachix(o object) error {
	data, _, err := k.do("POST", api+"/multipart-nar?compression=zst", nil)
	if err != nil {
		return err
	}
	var m multipart
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	var parts []partDone
	for rest := o.file; len(rest) > 0; {
		n := min(5<<20, len(rest))
		data, _, err := k.do("POST", fmt.Sprintf("%s/multipart-nar/%s?uploadId=%s&partNumber=%d", api, m.NarID, m.UploadID, len(parts)+1),
			[]byte(`{"contentMD5": "`+md5Text(rest[:n])+`"}`), "Content-Type", "application/json")
		if err != nil {
			return err
		}
		var u struct{ UploadURL string }
		if err := json.Unmarshal(data, &u); err != nil {
			return err
		}
		_, header, err := k.do("PUT", u.UploadURL, rest[:n], "Content-MD5", md5Text(rest[:n]))
		if err != nil {
			return err
		}
		parts = append(parts, partDone{len(parts) + 1, header.Get("ETag")})
		rest = rest[n:]
	}
	if data, err = json.Marshal(map[string]any{"parts": parts, "narInfoCreate": o.create()}); err != nil {
		return err
	}
	_, _, err = k.do("POST", api+"/multipart-nar/"+m.NarID+"/complete?uploadId="+m.UploadID, data, "Content-Type", "application/json")
	return err
}
