package pack_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"hercules/internal/push/pack"
)

func BenchmarkZstd(b *testing.B) {
	noise := make([]byte, 16<<20)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(noise)
	for name, data := range map[string][]byte{
		"noise": noise,
		"hex":   []byte(hex.EncodeToString(noise[:8<<20])),
		"text":  bytes.Repeat([]byte("some text that repeats, as logs and tables do\n"), 16<<20/46),
	} {
		for _, level := range []int{1, 3, 7} {
			b.Run(fmt.Sprintf("%s-%d", name, level), func(b *testing.B) {
				p := pack.New()
				b.SetBytes(int64(len(data)))
				var sent uint64
				for b.Loop() {
					res, err := p.Pack(b.Context(), pack.Compression{Method: pack.Zstd, Level: level}, uint64(len(data)), io.Discard, func(w io.Writer) error {
						_, err := w.Write(data)
						return err
					})
					if err != nil {
						b.Fatal(err)
					}
					sent = res.FileSize
				}
				b.ReportMetric(float64(len(data))/float64(sent), "ratio")
			})
		}
	}
}
