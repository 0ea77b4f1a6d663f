// Tree lists a directory tree, one JSON object a line, sorted by path: everything that a layer can
// say about a file, and the sha256 of its contents. Two trees are equal when their lists are.
//
//	tree [-prune PATH]... DIRECTORY
//
// Left out is what no layer determines: sizes and link counts of directories, and whatever is
// mounted inside.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"unsafe"
)

type entry struct {
	Path   string            `json:"path"`
	Type   string            `json:"type"`
	Mode   string            `json:"mode"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Mtime  string            `json:"mtime"`
	Links  uint64            `json:"links,omitempty"`
	SameAs string            `json:"sameAs,omitempty"`
	Size   int64             `json:"size,omitempty"`
	Device string            `json:"device,omitempty"`
	Target string            `json:"target,omitempty"`
	SHA256 string            `json:"sha256,omitempty"`
	Xattrs map[string]string `json:"xattrs,omitempty"`
}

type inode struct{ device, number uint64 }

func main() {
	prune := map[string]bool{}
	var root string
	for args := os.Args[1:]; len(args) > 0; args = args[1:] {
		if args[0] == "-prune" && len(args) > 1 {
			prune[args[1]] = true
			args = args[1:]
		} else {
			root = strings.TrimSuffix(args[0], "/")
		}
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	first := map[inode]string{}
	if err := walk(root, "", prune, first, encoder); err != nil {
		fmt.Fprintln(os.Stderr, "tree:", err)
		os.Exit(1)
	}
	if err := out.Flush(); err != nil {
		os.Exit(1)
	}
}

func walk(root, path string, prune map[string]bool, first map[inode]string, out *json.Encoder) error {
	full := root + "/" + path
	var stat syscall.Stat_t
	if err := syscall.Lstat(full, &stat); err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	e := entry{
		Path:  printable(path),
		Mode:  fmt.Sprintf("%04o", stat.Mode&0o7777),
		UID:   stat.Uid,
		GID:   stat.Gid,
		Mtime: fmt.Sprintf("%d.%09d", stat.Mtim.Sec, stat.Mtim.Nsec),
	}
	var err error
	switch stat.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		e.Type = "directory"
	case syscall.S_IFREG:
		e.Type, e.Size = "file", stat.Size
		if e.SHA256, err = digest(full); err != nil {
			return err
		}
	case syscall.S_IFLNK:
		e.Type = "symlink"
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		e.Target = printable(target)
	case syscall.S_IFIFO:
		e.Type = "fifo"
	case syscall.S_IFCHR:
		e.Type, e.Device = "character", device(stat.Rdev)
	case syscall.S_IFBLK:
		e.Type, e.Device = "block", device(stat.Rdev)
	default:
		e.Type = "other"
	}
	if e.Type != "directory" {
		e.Links = uint64(stat.Nlink)
		if e.Links > 1 {
			key := inode{uint64(stat.Dev), stat.Ino}
			if earlier, ok := first[key]; ok {
				e.SameAs = earlier
			} else {
				first[key] = e.Path
			}
		}
	}
	if e.Xattrs, err = xattrs(full); err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	if err := out.Encode(e); err != nil {
		return err
	}
	if e.Type != "directory" {
		return nil
	}
	names, err := namesIn(full)
	if err != nil {
		return err
	}
	for _, name := range names {
		child := filepath.Join(path, name)
		if prune["/"+child] {
			continue
		}
		if err := walk(root, child, prune, first, out); err != nil {
			return err
		}
	}
	return nil
}

func namesIn(directory string) ([]string, error) {
	file, err := os.Open(directory)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	names, err := file.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func device(number uint64) string {
	major := (number>>8)&0xfff | (number>>32)&^0xfff
	minor := number&0xff | (number>>12)&^0xff
	return fmt.Sprintf("%d:%d", major, minor)
}

// xattrs does not follow links. Overlayfs's own attributes of a lower directory are shown: they
// tell a tree that was unpacked for it from one that is seen through it.
func xattrs(path string) (map[string]string, error) {
	list, err := attribute(syscall.SYS_LLISTXATTR, path, "")
	if err == syscall.ENOTSUP || err == syscall.ENODATA {
		return nil, nil
	}
	if err != nil || len(list) == 0 {
		return nil, err
	}
	found := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := attribute(syscall.SYS_LGETXATTR, path, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found[printable(name)] = base64.StdEncoding.EncodeToString(value)
	}
	return found, nil
}

// attribute reads one attribute, or with SYS_LLISTXATTR and no name the names of all.
func attribute(call uintptr, path, name string) ([]byte, error) {
	pathBytes, err := syscall.BytePtrFromString(path)
	if err != nil {
		return nil, err
	}
	nameBytes, err := syscall.BytePtrFromString(name)
	if err != nil {
		return nil, err
	}
	buffer := make([]byte, 64<<10)
	var length uintptr
	var errno syscall.Errno
	if name == "" {
		length, _, errno = syscall.Syscall(call, uintptr(unsafe.Pointer(pathBytes)),
			uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)))
	} else {
		length, _, errno = syscall.Syscall6(call, uintptr(unsafe.Pointer(pathBytes)),
			uintptr(unsafe.Pointer(nameBytes)), uintptr(unsafe.Pointer(&buffer[0])),
			uintptr(len(buffer)), 0, 0)
	}
	if errno != 0 {
		return nil, errno
	}
	return buffer[:length], nil
}

// printable keeps every byte apart: JSON would merge what is not UTF-8.
func printable(text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if c := text[i]; c >= 0x20 && c < 0x7f && c != '\\' {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "\\x%02x", c)
		}
	}
	return out.String()
}
