package store

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"strings"
)

// A position is how far a walk over keys has come, as clients carry it: page tokens and cursors.
//
//	version kind request last-key checksum
//
// version and kind are bytes, request is the start of a hash over what the walk is about, the
// checksum is CRC32C over all before it, big endian. All of it is base64url without padding. It is
// no secret and grants nothing: the last key must lie in the range of the request that brings it.
type position struct {
	kind    byte
	request [8]byte
	last    string
}

const (
	positionVersion = 1
	pageKind        = 'p'
	streamKind      = 's'
	positionFrame   = 2 + 8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (p position) String() string {
	b := make([]byte, 0, positionFrame+len(p.last))
	b = append(b, positionVersion, p.kind)
	b = append(b, p.request[:]...)
	b = append(b, p.last...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return base64.RawURLEncoding.EncodeToString(b)
}

// parsePosition returns the last key of a position that String made for the same kind and request.
func parsePosition(s string, kind byte, request [8]byte, reason Reason) (last string, err error) {
	if len(s) > base64.RawURLEncoding.EncodedLen(positionFrame+MaxKeyBytes) {
		return "", refuse(reason, "%d characters: not one of ours", len(s))
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") || len(b) < positionFrame {
		return "", refuse(reason, "not one of ours")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return "", refuse(reason, "damaged: wrong checksum")
	}
	if body[0] != positionVersion || body[1] != kind {
		return "", refuse(reason, "made by another call or another version")
	}
	if [8]byte(body[2:10]) != request {
		return "", refuse(reason, "made for another tenant or range")
	}
	last = string(body[10:])
	if err := checkKey(last); err != nil {
		return "", refuse(reason, "contains no key")
	}
	return last, nil
}

// requestDigest identifies what a walk is about.
func requestDigest(parts ...[]byte) (d [8]byte) {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return [8]byte(h.Sum(nil)[:8])
}
