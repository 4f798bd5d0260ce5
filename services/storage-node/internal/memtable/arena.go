package memtable

import (
	"sync/atomic"
	"unsafe"
)

// ref names an object in the arena: its byte offset divided by 8. Zero is "none"; the first
// eight bytes of an arena are never given out.
type ref uint32

// maxArenaBytes bounds an arena so that a ref fits the 30 bits that a link has for it.
const maxArenaBytes = 8 << 30

// arena is one piece of memory without pointers, given out front to back by the only writer.
type arena struct {
	words []uint64
	base  unsafe.Pointer
	used  atomic.Int64 // bytes given out, including the reserved first eight
}

func (a *arena) init(bytes int) {
	bytes = min(max(bytes, 1<<10), maxArenaBytes)
	a.words = make([]uint64, (bytes+7)/8)
	a.base = unsafe.Pointer(unsafe.SliceData(a.words))
	a.used.Store(8)
}

func (a *arena) capacity() int { return len(a.words) * 8 }

// alloc gives out n bytes, aligned to 8. The bytes are not zeroed: an arena is used again.
func (a *arena) alloc(n int) (ref, bool) {
	used := int(a.used.Load())
	rounded := (n + 7) &^ 7
	if rounded < n || rounded > a.capacity()-used {
		return 0, false
	}
	a.used.Store(int64(used + rounded))
	return ref(used / 8), true
}

func (a *arena) at(r ref, byteOffset int) unsafe.Pointer {
	return unsafe.Add(a.base, int(r)*8+byteOffset)
}

func (a *arena) bytes(r ref, byteOffset, n int) []byte {
	return unsafe.Slice((*byte)(a.at(r, byteOffset)), n)
}

func (a *arena) u32(r ref, byteOffset int) *uint32 { return (*uint32)(a.at(r, byteOffset)) }
func (a *arena) u64(r ref, byteOffset int) *uint64 { return (*uint64)(a.at(r, byteOffset)) }

// A node stands for one distinct engine key; a version for one entry of it. Both live in the arena:
//
//	node     0  key length   u32   fixed once published
//	         4  hash         u32   fixed
//	         8  chain        u32   fixed: next node of the hash bucket
//	        12  height       u32   fixed
//	        16  newest       u32   atomic: first version
//	        20  oldest       u32   atomic: last version
//	        24  before       u32   atomic: previous node of level 0
//	        28  -
//	        32  links        u64 × height, atomic: reference ‖ generation ‖ hint
//	            key
//	version  0  trailer      u64   fixed
//	         8  older        u32   atomic
//	        12  newer        u32   atomic
//	        16  jump         u32   fixed: an older version, far enough away to make search logarithmic
//	        20  depth        u32   fixed: versions older than this one when it came
//	        24  value length u32   fixed
//	        28  value
const (
	nodeKeyLen  = 0
	nodeHash    = 4
	nodeChain   = 8
	nodeHeight  = 12
	nodeNewest  = 16
	nodeOldest  = 20
	nodeBefore  = 24
	nodeLinks   = 32
	linkBytes   = 8
	versTrailer = 0
	versOlder   = 8
	versNewer   = 12
	versJump    = 16
	versDepth   = 20
	versLen     = 24
	versValue   = 28
)

func (a *arena) nodeKey(n ref) []byte {
	height := int(*a.u32(n, nodeHeight))
	return a.bytes(n, nodeLinks+height*linkBytes, int(*a.u32(n, nodeKeyLen)))
}

func (a *arena) link(n ref, level int) link {
	return link(atomic.LoadUint64(a.u64(n, nodeLinks+level*linkBytes)))
}

func (a *arena) setLink(n ref, level int, l link) {
	atomic.StoreUint64(a.u64(n, nodeLinks+level*linkBytes), uint64(l))
}

func (a *arena) newest(n ref) ref { return ref(atomic.LoadUint32(a.u32(n, nodeNewest))) }
func (a *arena) oldest(n ref) ref { return ref(atomic.LoadUint32(a.u32(n, nodeOldest))) }
func (a *arena) before(n ref) ref { return ref(atomic.LoadUint32(a.u32(n, nodeBefore))) }
func (a *arena) older(v ref) ref  { return ref(atomic.LoadUint32(a.u32(v, versOlder))) }
func (a *arena) newer(v ref) ref  { return ref(atomic.LoadUint32(a.u32(v, versNewer))) }

func (a *arena) value(v ref) []byte {
	n := int(*a.u32(v, versLen))
	return a.bytes(v, versValue, n)[:n:n]
}
