package cache_test

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskFull fills a small file system by both protocols.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("SKIP: mounting a small tmpfs: " + err.Error())
	}
	t.Cleanup(func() { // after the server has closed
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := newServerIn(t, dir)
	fits := makeObject(t, "fits", randomBytes(3<<20, 1))
	s.push(fits)
	big := makeObject(t, "big", randomBytes(7<<20, 2), fits)
	for range 3 {
		s.want(507, "PUT", "/"+big.info.URL, big.file)
	}
	s.want(404, "GET", "/"+big.info.URL, nil)
	m := s.begin()
	s.part(m, 1, big.file[:4<<20])
	s.want(507, "PUT", s.partURL(m, 2, big.file[4<<20:]), big.file[4<<20:], "Content-MD5", md5Text(big.file[4<<20:]))
	s.want(200, "POST", api+"/multipart-nar/"+m.NarID+"/abort?uploadId="+m.UploadID, nil)
	s.check(fits)
	sound(t, s.c)

	// Not even a narinfo fits.
	next := makeObject(t, "next", []byte("next"))
	s.want(200, "PUT", "/"+next.info.URL, next.file)
	fill(t, dir+"/fill")
	if r := s.do("PUT", "/"+next.hash()+".narinfo", bytes.NewReader(next.info.Append(nil))); r.status != 507 {
		t.Errorf("%v", r)
	}
	if s.has(next) {
		t.Error("visible")
	}
	if err := os.Remove(dir + "/fill"); err != nil {
		t.Fatal(err)
	}
	s.push(next)
	s.check(next)
	if got, want := s.c.Stats().Bytes, diskUse(t, s); got != want {
		t.Errorf("%d bytes counted, %d are there", got, want)
	}
}

func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 1<<20); len(b) > 0; b = b[:len(b)/2] {
		for err = nil; err == nil; {
			_, err = f.Write(b)
		}
	}
}
