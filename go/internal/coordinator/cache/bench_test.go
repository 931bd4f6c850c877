package cache_test

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"hercules/internal/coordinator/cache"
)

// BenchmarkUpload is the throughput in bytes of uncompressed NARs, half of which compresses well.
func BenchmarkUpload(b *testing.B) {
	contents := append(randomBytes(4<<20, 1), bytes.Repeat([]byte("compressible "), 4<<20/13)...)
	for _, way := range []string{"plain", "cachix"} {
		for _, sync := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/sync=%v", way, sync), func(b *testing.B) {
				s := newServer(b, func(o *cache.Options) { o.NoSync = !sync })
				objects := make([]object, b.N)
				for i := range objects {
					name := fmt.Sprintf("bench-%d", i)
					objects[i] = makeObject(b, name, append(contents, name...))
				}
				var next atomic.Int64
				b.SetBytes(int64(len(contents)))
				b.SetParallelism(4)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						o := objects[next.Add(1)-1]
						if way == "plain" {
							s.push(o)
						} else {
							s.pushCachix(o)
						}
					}
				})
			})
		}
	}
}

// BenchmarkPresent asks for 10,000 present paths by one request.
func BenchmarkPresent(b *testing.B) {
	s := newServer(b)
	o := makeObject(b, "o", nil)
	s.want(200, "PUT", "/"+o.info.URL, o.file)
	var hashes []string
	for i := range 10_000 {
		p := makeObject(b, fmt.Sprint("present-", i), nil)
		s.want(200, "PUT", "/"+p.hash()+".narinfo", p.info.Append(nil))
		hashes = append(hashes, p.hash())
	}
	for b.Loop() {
		var missing []string
		s.json(200, "POST", api+"/narinfo", hashes, &missing)
		if len(missing) != 0 {
			b.Fatal(len(missing))
		}
	}
}
