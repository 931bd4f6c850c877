package daemon_test

import (
	"io"
	"net"
	"path/filepath"
	"testing"

	"hercules/internal/nix/daemon"
	"hercules/internal/testnix"
)

// A daemon drops a connection when another one is setting up the same new store.
func TestDialAgainWhenTheDaemonDropsTheHandshake(t *testing.T) {
	t.Parallel()
	store := testnix.New(t)
	socket := filepath.Join(store.Dir(), "dropping")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { listener.Close(); <-done })
	go func() {
		defer close(done)
		first, err := listener.Accept()
		if err != nil {
			return
		}
		first.Close()
		second, err := listener.Accept()
		if err != nil {
			return
		}
		defer second.Close()
		upstream, err := net.Dial("unix", store.Socket())
		if err != nil {
			t.Error(err)
			return
		}
		defer upstream.Close()
		up := make(chan struct{})
		go func() {
			defer close(up)
			io.Copy(upstream, second)
			upstream.(*net.UnixConn).CloseWrite()
		}()
		io.Copy(second, upstream)
		second.Close()
		<-up
	}()
	conn, err := daemon.Dial(t.Context(), daemon.Endpoint{Socket: socket, Root: store.Root()}, daemon.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.IsValidPath(t.Context(), "/nix/store/00000000000000000000000000000000-x"); err != nil {
		t.Error(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
