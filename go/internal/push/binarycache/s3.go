package binarycache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hercules/internal/nix/narinfo"
	"hercules/internal/push/fault"
)

// bucket is a cache in an S3 bucket. An object is there when it is complete.
type bucket struct {
	client *minio.Client
	bucket string
	prefix string
	policy fault.Policy
	tmp    string
}

// openS3 takes s3://BUCKET[/PREFIX] with Nix's parameters region, endpoint, scheme, profile and addressing-style.
// Credentials are those of the environment (AWS_ACCESS_KEY_ID …), of AWS's credentials file, or of the machine.
func openS3(uri string, o Options) (*bucket, url.Values, error) {
	u, err := url.Parse(uri)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return nil, nil, err
	}
	if u.Host == "" {
		return nil, nil, errors.New("no bucket")
	}
	q := u.Query()
	b := &bucket{bucket: u.Host, policy: o.Policy, tmp: o.TempDir, prefix: strings.Trim(u.Path, "/")}
	if b.prefix != "" {
		b.prefix += "/"
	}
	endpoint, secure := q.Get("endpoint"), q.Get("scheme") != "http"
	switch {
	case strings.HasPrefix(endpoint, "http://"):
		endpoint, secure = strings.TrimPrefix(endpoint, "http://"), false
	case strings.HasPrefix(endpoint, "https://"):
		endpoint, secure = strings.TrimPrefix(endpoint, "https://"), true
	}
	own := endpoint != ""
	if !own {
		endpoint = "s3.amazonaws.com"
	}
	opts := &minio.Options{
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{},
			&credentials.FileAWSCredentials{Profile: q.Get("profile")},
			&credentials.IAM{},
		}),
		Secure:     secure,
		Region:     q.Get("region"),
		Transport:  o.Client.Transport,
		MaxRetries: 1, // repeated here, where it is known for how long
	}
	if opts.Region == "" {
		opts.Region = "us-east-1" // as Nix
	}
	switch style := q.Get("addressing-style"); {
	case style == "virtual":
		opts.BucketLookup = minio.BucketLookupDNS
	case style == "path", style == "" && own:
		opts.BucketLookup = minio.BucketLookupPath
	case style == "", style == "auto":
	default:
		return nil, nil, fmt.Errorf("addressing-style is %q; auto, path and virtual are expected", style)
	}
	if b.client, err = minio.New(strings.TrimRight(endpoint, "/"), opts); err != nil {
		return nil, nil, err
	}
	return b, q, nil
}

func (b *bucket) open(context.Context) error { return nil }

func (b *bucket) close() {}

func (b *bucket) spool() *spool { return &spool{create: nameless(b.tmp)} }

func (b *bucket) discard(s *spool) { _ = s.close() }

// explain gives an error of the client its kind.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var e minio.ErrorResponse
	if !errors.As(err, &e) {
		return fault.Sent(ctx, err)
	}
	text := e.Message
	if text == "" {
		text = e.Code
	}
	err = fmt.Errorf("the S3 server answered %d (%s): %s", e.StatusCode, e.Code, text)
	k := fault.Permanent
	switch {
	case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden:
		k = fault.Auth
	case e.StatusCode == http.StatusTooManyRequests, e.StatusCode == http.StatusRequestTimeout, e.Code == "RequestTimeout",
		e.StatusCode >= 500 && e.StatusCode != http.StatusNotImplemented && e.StatusCode != http.StatusInsufficientStorage:
		k = fault.Transient
	}
	return &fault.Error{Kind: k, Status: e.StatusCode, Err: err}
}

// has takes 403 for missing, as Nix does: it is the answer for what is not there in a bucket that may not be listed.
func (b *bucket) has(ctx context.Context, name string) (there bool, err error) {
	err = fault.Retry(ctx, b.policy, func(ctx context.Context) error {
		_, err := b.client.StatObject(ctx, b.bucket, b.prefix+name, minio.StatObjectOptions{})
		err = explain(ctx, err)
		switch fault.StatusOf(err) {
		case http.StatusNotFound, http.StatusForbidden:
			there = false
			return nil
		}
		there = err == nil
		return err
	})
	return there, err
}

func (b *bucket) get(ctx context.Context, name string) (text []byte, err error) {
	err = fault.Retry(ctx, b.policy, func(ctx context.Context) error {
		obj, err := b.client.GetObject(ctx, b.bucket, b.prefix+name, minio.GetObjectOptions{})
		if err == nil {
			text, err = io.ReadAll(io.LimitReader(obj, narinfo.MaxSize))
			_ = obj.Close()
		}
		err = explain(ctx, err)
		if fault.StatusOf(err) == http.StatusNotFound || fault.StatusOf(err) == http.StatusForbidden {
			text, err = nil, nil
		}
		return err
	})
	return text, err
}

func (b *bucket) put(ctx context.Context, name, contentType string, s *spool) error {
	return fault.Retry(ctx, b.policy, func(ctx context.Context) error {
		ctx, watch := fault.NewWatch(ctx, idleLimit)
		defer watch.Stop()
		_, err := b.client.PutObject(ctx, b.bucket, b.prefix+name, s.reader(), s.size, minio.PutObjectOptions{
			ContentType: contentType,
			Progress:    watch.Reader(endless{}),
		})
		return explain(ctx, err)
	})
}

// endless is read by the client as far as it has sent.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
