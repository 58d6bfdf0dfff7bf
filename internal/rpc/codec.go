package rpc

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that codec wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// codec is gRPC's codec for protobuf, but does not copy the CRL into an answer. All answers share the authority's
// bytes. Copies would fill the memory: gRPC keeps each buffer above 1 MiB that was sent. Each batch of revocations
// changes the size of the CRL, and so needs another buffer.
type codec struct {
	encoding.CodecV2
	crls map[protoreflect.FullName]crlPath
}

// crlPath is the place of the CRL in an answer.
type crlPath struct {
	bundle protoreflect.FieldDescriptor // nil: the CRL is a field of the answer itself
	crl    protoreflect.FieldDescriptor
}

func newCodec() codec {
	c := codec{encoding.GetCodecV2("proto"), map[protoreflect.FullName]crlPath{}}
	messages := espmv1.File_espm_v1_certificate_proto.Messages()
	crl := messages.ByName("Bundle").Fields().ByName("crl_pem")
	for _, file := range []protoreflect.FileDescriptor{espmv1.File_espm_v1_node_proto, espmv1.File_espm_v1_certificate_proto} {
		for i := range file.Messages().Len() {
			m := file.Messages().Get(i)
			if bundle := m.Fields().ByName("bundle"); bundle != nil && bundle.Message() == crl.Parent() {
				c.crls[m.FullName()] = crlPath{bundle, crl}
			}
		}
	}
	trust := messages.ByName("GetTrustBundleResponse")
	c.crls[trust.FullName()] = crlPath{nil, trust.Fields().ByName("crl_pem")}
	return c
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	answer := m.ProtoReflect()
	path, found := c.crls[answer.Descriptor().FullName()]
	if !found || path.bundle != nil && !answer.Has(path.bundle) {
		return c.CodecV2.Marshal(v)
	}
	holder := answer
	if path.bundle != nil {
		holder = answer.Mutable(path.bundle).Message()
	}
	crl := holder.Get(path.crl)
	holder.Clear(path.crl)
	defer holder.Set(path.crl, crl)
	data, err := c.CodecV2.Marshal(v)
	if err != nil || len(crl.Bytes()) == 0 {
		return data, err
	}
	return append(data, mem.SliceBuffer(path.head(len(crl.Bytes()))), mem.SliceBuffer(crl.Bytes())), nil
}

// head returns the bytes before a CRL of a given size at the end of an answer. In a bundle, these bytes begin a second
// piece of the bundle. Readers merge the pieces of an embedded message:
// https://protobuf.dev/programming-guides/encoding/#last-one-wins
func (p crlPath) head(size int) []byte {
	var head []byte
	if p.bundle != nil {
		head = protowire.AppendTag(head, p.bundle.Number(), protowire.BytesType)
		piece := protowire.SizeTag(p.crl.Number()) + protowire.SizeBytes(size)
		head = protowire.AppendVarint(head, uint64(piece)) // #nosec G115 -- a size is not negative
	}
	head = protowire.AppendTag(head, p.crl.Number(), protowire.BytesType)
	return protowire.AppendVarint(head, uint64(size)) // #nosec G115 -- a size is not negative
}
