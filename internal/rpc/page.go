package rpc

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/store"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

func pageSize(asked int32) (int, error) {
	switch {
	case asked < 0:
		return 0, node.Invalid("page_size", "must not be negative, is %d", asked)
	case asked == 0:
		return defaultPage, nil
	default:
		return min(int(asked), maxPage), nil
	}
}

// A page token is a hash of the list and the filter, then the place where the previous page ended. Because of the hash,
// a token is refused with another filter.
const hashLen = 8

func pageToken(list, after string) string {
	if after == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(list))
	return base64.RawURLEncoding.EncodeToString(append(sum[:hashLen], after...))
}

func parsePageToken(list, token string) (after string, err error) {
	if token == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) <= hashLen {
		return "", node.Invalid("page_token", "was not issued by this server")
	}
	sum := sha256.Sum256([]byte(list))
	if string(b[:hashLen]) != string(sum[:hashLen]) {
		return "", node.Invalid("page_token", "belongs to a list with another filter: use the filter of the first page")
	}
	return string(b[hashLen:]), nil
}

// maxPageBytes keeps every page below 4 MiB, the most that gRPC clients accept by default. A larger record, of at most
// 2 million characters, gets a page of its own.
const maxPageBytes = 1 << 20

// convert turns as many records of a page into messages as fit, and returns the place where the next page starts. The
// function key returns a record's place in the list.
func convert[T any, P proto.Message](page store.Page[T], to func(T) (P, error), key func(T) string) (out []P, next string, err error) {
	size := 0
	for i, item := range page.Items {
		m, err := to(item)
		if err != nil {
			return nil, "", err
		}
		if size += proto.Size(m); i > 0 && size > maxPageBytes {
			return out, key(page.Items[i-1]), nil
		}
		out = append(out, m)
	}
	return out, page.Next, nil
}

// paging checks the page size and the page token of a list request. The value list identifies the list and its filter.
func paging(list any, size int32, token string) (name string, limit int, after string, err error) {
	name = fmt.Sprintf("%T %+v", list, list)
	limit, sizeErr := pageSize(size)
	after, tokenErr := parsePageToken(name, token)
	return name, limit, after, node.Join(sizeErr, tokenErr)
}
