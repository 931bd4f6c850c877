package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"hercules/internal/nix/storepath"
)

const textMethod = "text:sha256"

// deferring handles an operation of a client of a Proxy with a Writer. False: it is to be moved to the daemon, which
// by then has all that the client was told to be in the store.
func (c *proxyConn) deferring(o op) (handled bool, err error) {
	rooted := c.rooted
	c.rooted = ""
	switch o {
	case opSetOptions:
		return false, c.settle()
	case opAddTempRoot:
		return true, c.addTempRoot()
	case opIsValidPath:
		return true, c.isValidPath(rooted)
	case opAddToStore:
		return true, c.addToStore()
	}
	if err := c.flush(); err != nil {
		return true, err
	}
	return false, c.settle()
}

// flush waits for the Writer. After an error the client has been told, and its connection is to be ended.
func (c *proxyConn) flush() error {
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	if !c.proxy.Writer.idle() {
		defer c.watchClient(func() { cancel(errClientGone) })()
	}
	err := c.proxy.Writer.Flush(ctx)
	if err == nil {
		return nil
	}
	said := &RemoteError{Msg: err.Error()}
	if remote, ok := errors.AsType[*RemoteError](err); ok {
		said.Level, said.Traces = remote.Level, remote.Traces
	}
	return c.refuse(said)
}

// settle reads the answers that are owed by the daemon to temporary roots.
func (c *proxyConn) settle() error {
	for ; c.owed > 0; c.owed-- {
		err := c.ur.stderr(c.proxy.Hooks.Event)
		c.ur.uint()
		if err == nil {
			err = c.ur.err
		}
		if isClosed(err) {
			err = closedError(opAddTempRoot.String(), c.up.lastWords())
		}
		if err != nil {
			return c.refuse(err)
		}
	}
	return nil
}

// addTempRoot asks the daemon to keep a path. For a derivation the client need not wait: its next question about it
// comes to the daemon after this.
func (c *proxyConn) addTempRoot() error {
	path := c.cr.string()
	if c.cr.err != nil {
		return c.cr.err
	}
	if c.proxy.Writer.state(path) != unknownPath {
		c.rooted = path
		c.cw.uint(msgLast)
		c.cw.uint(1)
		return nil
	}
	if err := c.settle(); err != nil {
		return err
	}
	c.uw.uint(uint64(opAddTempRoot))
	c.uw.string(path)
	if validPath(path) && storepath.IsDerivation(path) {
		c.owed++
		c.rooted = path
		c.cw.uint(msgLast)
		c.cw.uint(1)
		return nil
	}
	if c.relayLog(opAddTempRoot.String()) {
		c.ur.begin()
		relay(c.cw, c.ur, forms[opAddTempRoot].res)
		c.rooted = path
	}
	return c.err()
}

// isValidPath answers without the daemon where it is sure. rooted is the path that the client made a root right before.
func (c *proxyConn) isValidPath(rooted string) error {
	path := c.cr.string()
	if c.cr.err != nil {
		return c.cr.err
	}
	answer := func(valid bool) error {
		c.cw.uint(msgLast)
		c.cw.bool(valid)
		return nil
	}
	// So Nix asks before it writes a derivation. Else it might ask to open the file.
	writing := rooted == path && storepath.IsDerivation(path)
	switch c.proxy.Writer.state(path) {
	case storedPath:
		return answer(true)
	case pendingPath:
		if !writing {
			if err := c.flush(); err != nil {
				return err
			}
		}
		return answer(true)
	}
	if writing {
		if _, err := os.Lstat(c.proxy.Upstream.Root + path); errors.Is(err, fs.ErrNotExist) {
			return answer(false)
		}
	}
	if err := c.settle(); err != nil {
		return err
	}
	c.uw.uint(uint64(opIsValidPath))
	c.uw.string(path)
	if c.relayLog(opIsValidPath.String()) {
		c.ur.begin()
		valid := c.ur.bool()
		if c.ur.err == nil {
			c.cw.bool(valid)
			if valid && rooted == path {
				c.proxy.Writer.keep(path)
			}
		}
	}
	return c.err()
}

// addToStore defers derivations.
func (c *proxyConn) addToStore() error {
	name, method, refs := c.cr.string(), c.cr.string(), c.cr.strings()
	repair := c.cr.uint()
	var text []byte
	whole := false
	if method == textMethod && strings.HasSuffix(name, ".drv") && repair == 0 {
		text, whole = c.cr.shortFrames(maxDerivationText)
	}
	if c.cr.err != nil {
		return c.cr.err
	}
	if whole && isDerivationText(text) {
		if info := textInfo(name, text, refs); info != nil && c.proxy.Writer.add(c.ctx, request{info.Path, name, text, info.References}) {
			c.cw.uint(msgLast)
			c.cw.string(info.Path)
			c.cw.pathInfo(info)
			return nil
		}
	}
	if len(refs) > 0 {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if err := c.settle(); err != nil {
		return err
	}
	c.uw.uint(uint64(opAddToStore))
	c.uw.string(name)
	c.uw.string(method)
	c.uw.strings(refs)
	c.uw.uint(repair)
	if len(text) > 0 {
		c.uw.uint(uint64(len(text)))
		_, _ = c.uw.bw.Write(text)
	}
	if whole {
		c.uw.uint(0)
	}
	f := forms[opAddToStore]
	return c.relayAnswer(f, !whole, func() {
		path := c.ur.string()
		c.cw.string(path)
		relay(c.cw, c.ur, formInfo)
		if c.ur.err == nil && validPath(path) {
			// So the daemon found the references to be valid.
			c.proxy.Writer.keep(append(slices.DeleteFunc(refs, func(p string) bool { return !validPath(p) }), path)...)
		}
	})
}

// shortFrames reads frames while they have at most limit bytes together. whole: these were all.
func (r *reader) shortFrames(limit int) (text []byte, whole bool) {
	for len(text) <= limit && r.err == nil {
		b, err := r.br.Peek(8)
		if err != nil {
			r.fail(unexpected(err))
			break
		}
		n := binary.LittleEndian.Uint64(b)
		if n > uint64(limit-len(text)) {
			break // with this frame it is too long
		}
		_, _ = r.br.Discard(8)
		if n == 0 {
			return text, true
		}
		var buf bytes.Buffer
		r.copyTo(&buf, n)
		if text == nil {
			text = buf.Bytes()
		} else {
			text = append(text, buf.Bytes()...)
		}
	}
	return text, false
}

// isDerivationText tells derivations from other files with such a name.
func isDerivationText(b []byte) bool {
	return bytes.HasPrefix(b, []byte("Derive(")) || bytes.HasPrefix(b, []byte("DrvWithVersion("))
}

// textInfo is what the daemon would say of a text. Nil: it might not take it.
func textInfo(name string, text []byte, refs []string) *PathInfo {
	refs = slices.Compact(slices.Sorted(slices.Values(refs)))
	for _, ref := range refs {
		if !validPath(ref) {
			return nil
		}
	}
	path, err := storepath.MakeTextPath(name, string(text), refs)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(text)
	hash, size := narOfText(text)
	return &PathInfo{
		Path: path, NarHash: hash, NarSize: size, References: refs, RegistrationTime: uint64(time.Now().Unix()),
		ContentAddress: textMethod + ":" + nixbase32.EncodeToString(sum[:]),
	}
}

// narOfText returns hash and size of the NAR of a file that is not executable.
func narOfText(text []byte) (hash []byte, size uint64) {
	b := make([]byte, 0, 112+len(text)+7)
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		b = appendString(b, s)
	}
	b = appendString(b, text)
	b = appendString(b, ")")
	sum := sha256.Sum256(b)
	return sum[:], uint64(len(b))
}

func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return append(b, zeros[:-len(s)&7]...)
}
