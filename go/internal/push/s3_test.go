package push_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hercules/internal/push"
	"hercules/internal/push/fault"
	"hercules/internal/testnix"
)

// s3Server starts a real S3 server that keeps objects as files, with a bucket "bucket", and gives its address and the bucket's directory.
func s3Server(t *testing.T) (address, dir string) {
	t.Helper()
	program := os.Getenv("HERCULES_TEST_VERSITYGW")
	if program == "" {
		var err error
		if program, err = exec.LookPath("versitygw"); err != nil {
			t.Skip("SKIP: no S3 server; go install github.com/versity/versitygw/cmd/versitygw@v1.8.0, and have it in PATH or in HERCULES_TEST_VERSITYGW")
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address = l.Addr().String()
	must(t, l.Close())
	root := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program, "--quiet", "--port", address, "--access", "user", "--secret", "very-secret", "posix", root)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	client, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4("user", "very-secret", ""), Region: "us-east-1"})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, fault.Retry(ctx, quick, func(ctx context.Context) error {
		err := client.MakeBucket(ctx, "bucket", minio.MakeBucketOptions{})
		if e := (minio.ErrorResponse{}); err != nil && !errors.As(err, &e) {
			return fault.As(fault.Transient, err) // it does not listen yet
		}
		return err
	}))
	return address, filepath.Join(root, "bucket")
}

func TestS3(t *testing.T) {
	address, dir := s3Server(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "user")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
	s := testnix.New(t)
	secret, public := keypair(t, "k-1")
	for name, expr := range map[string]string{"small": closure, "parts": big} {
		t.Run(name, func(t *testing.T) {
			path := s.Build(expr)
			uri := "s3://bucket/" + name + "?endpoint=" + address + "&scheme=http&region=us-east-1"
			p := open(t, s, nixCache("main", uri, secret))
			must(t, p.Push(t.Context(), []string{path}, push.Options{}))
			whole(t, filepath.Join(dir, name))
			substitute(t, s.Nix(), "file://"+filepath.Join(dir, name), public, path)
			again := open(t, s, nixCache("main", uri, secret))
			must(t, again.Push(t.Context(), []string{path}, push.Options{Done: func(d push.Done) error {
				if d.Uploaded != 0 {
					t.Errorf("again: %+v", d)
				}
				return nil
			}}))
		})
	}
	path := s.Build(`sh "one" {} "echo > $out"`)
	t.Run("no bucket", func(t *testing.T) {
		p := open(t, s, nixCache("main", "s3://none?scheme=http&endpoint="+address))
		err := p.Push(t.Context(), []string{path}, push.Options{})
		if e, ok := errors.AsType[*push.Error](err); !ok || e.Kind != fault.Permanent || !strings.Contains(err.Error(), "bucket") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("wrong key", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", "other")
		p := open(t, s, nixCache("main", "s3://bucket?endpoint=http://"+address))
		err := p.Push(t.Context(), []string{path}, push.Options{})
		if e, ok := errors.AsType[*push.Error](err); !ok || e.Kind != fault.Auth {
			t.Errorf("error %v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		d := deps(t, s)
		d.Retry.Total = 50 * time.Millisecond
		p, err := push.Open(caches(nixCache("main", "s3://bucket?endpoint=http://127.0.0.1:1")), d)
		must(t, err)
		defer p.Close()
		err = p.Push(t.Context(), []string{path}, push.Options{})
		if e, ok := errors.AsType[*push.Error](err); !ok || e.Kind != fault.Transient {
			t.Errorf("error %v", err)
		}
	})
}
