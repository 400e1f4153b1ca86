//! Field offsets in the running kernel, from its BTF.
//!
//! Rust emits no CO-RE relocations, so programs that follow kernel structures get offsets as globals before loading.
//! The format is `Documentation/bpf/btf.rst`; only what leads from a structure's name to a member's offset is read.

use std::{collections::HashMap, ffi::CStr};

/// A field that programs read: global, structure, path of the member.
pub type Field = (&'static str, &'static str, &'static str);

const HEADER: usize = 24;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
/// Bound of nesting, of structures in each other and of names for a type; two or three in the kernel. It stops a blob that
/// contains itself.
const DEPTH: u32 = 8;

/// The structures of a BTF blob, indexed by name.
pub struct Structs<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
    by_name: HashMap<&'a [u8], usize>,
}

struct Type<'a> {
    name: u32,
    kind: u32,
    /// Size in bytes, or another type: what a typedef, a qualifier or a function stands for.
    refers: u32,
    /// For structures and unions, their members of 12 bytes: name, type, offset in bits. For enumerations their values, of 8
    /// bytes or, of 64 bits, 12: the name comes first.
    members: &'a [u8],
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Structs<'a> {
    /// Parses a blob such as `/sys/kernel/btf/vmlinux`. `None`: damaged, or of a later format.
    #[must_use]
    pub fn parse(btf: &'a [u8]) -> Option<Self> {
        let (types_at, types_len) = (u32_at(btf, 8)? as usize, u32_at(btf, 12)? as usize);
        let (strings_at, strings_len) = (u32_at(btf, 16)? as usize, u32_at(btf, 20)? as usize);
        let section = |at: usize, len: usize| btf.get(HEADER.checked_add(at)?..)?.get(..len);
        let data = section(types_at, types_len)?;
        let strings = section(strings_at, strings_len)?;
        // Type 0 is void.
        let mut types = vec![Type { name: 0, kind: 0, refers: 0, members: &[] }];
        let mut by_name = HashMap::new();
        let mut at = 0;
        while at < data.len() {
            // There are 150,000 types: one look at the blob for each.
            let (words, _) = data.get(at..at + 12)?.as_chunks();
            let [name, info, refers] = <[[u8; 4]; 3]>::try_from(words).ok()?.map(u32::from_le_bytes);
            let kind = info >> 24 & 0x1f;
            let len = extra(kind, info & 0xffff)?;
            let members = data.get(at + 12..at + 12 + len)?;
            if kind == KIND_STRUCT {
                by_name.entry(text(strings, name)?).or_insert(types.len());
            }
            types.push(Type { name, kind, refers, members });
            at += 12 + len;
        }
        Some(Self { types, strings, by_name })
    }

    /// Offset in bytes of a member of a structure, also where it stands in an anonymous structure or union inside. A member
    /// of a member is written `member.inner`, for structures that stand in each other.
    #[must_use]
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut index = *self.by_name.get(structure.as_bytes())?;
        let mut bits = 0;
        for member in path.split('.') {
            let (here, kind) = self.member(index, member.as_bytes(), 0)?;
            bits += here;
            index = kind;
        }
        Some(bits / 8)
    }

    /// For programs: the offset of each of `fields` (a global, a structure and a path in it). In the programs 0 means that
    /// there is no such field, and all ones an offset of 0.
    #[must_use]
    pub fn globals<const N: usize>(&self, fields: &[Field; N]) -> [(&'static str, u64); N] {
        fields.map(|(global, structure, path)| {
            let offset = self.offset(structure, path).map_or(0, |at| if at == 0 { u64::MAX } else { u64::from(at) });
            (global, offset)
        })
    }

    /// The id of a function.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        let is_it = |found: &Type| found.kind == KIND_FUNC && text(self.strings, found.name) == Some(name.as_bytes());
        u32::try_from(self.types.iter().position(is_it)?).ok()
    }

    /// Whether there is an enumeration of this name.
    #[must_use]
    pub fn has_enum(&self, name: &str) -> bool {
        self.enums().any(|found| text(self.strings, found.name) == Some(name.as_bytes()))
    }

    /// Whether an enumeration has a value of this name.
    #[must_use]
    pub fn has_enumerator(&self, name: &str) -> bool {
        let has_it = |found: &Type| {
            let each = if found.kind == KIND_ENUM { 8 } else { 12 };
            let mut names = found.members.chunks_exact(each).filter_map(|entry| u32_at(entry, 0));
            names.any(|at| text(self.strings, at) == Some(name.as_bytes()))
        };
        self.enums().any(has_it)
    }

    fn enums(&self) -> impl Iterator<Item = &Type<'a>> {
        self.types.iter().filter(|found| matches!(found.kind, KIND_ENUM | KIND_ENUM64))
    }

    /// Offset in bits and type of a member.
    fn member(&self, index: usize, member: &[u8], depth: u32) -> Option<(u32, usize)> {
        let kind = self.plain(index)?;
        if depth > DEPTH || !matches!(kind.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        kind.members.chunks_exact(12).find_map(|entry| {
            let name = text(self.strings, u32_at(entry, 0)?)?;
            let index = u32_at(entry, 4)? as usize;
            // With kind_flag set, the top byte is a bit field's size; offsets stay below 2^24 bits either way.
            let here = u32_at(entry, 8)? & 0x00ff_ffff;
            if name == member {
                return Some((here, index));
            }
            let (inner, kind) = name.is_empty().then(|| self.member(index, member, depth + 1))??;
            Some((here + inner, kind))
        })
    }

    /// A type without the names and qualifiers that it may go by.
    fn plain(&self, index: usize) -> Option<&Type<'a>> {
        let mut found = self.types.get(index)?;
        for _ in 0..DEPTH {
            match found.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    found = self.types.get(found.refers as usize)?;
                }
                _ => break,
            }
        }
        Some(found)
    }
}

/// Bytes that follow a type's twelve.
fn extra(kind: u32, vlen: u32) -> Option<usize> {
    let vlen = vlen as usize;
    Some(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * vlen,
        6 | 13 => 8 * vlen,
        2 | 7..=12 | 16 | 18 => 0,
        // Void never stands in the list; what is above 19 is of a later format.
        _ => return None,
    })
}

fn text(strings: &[u8], at: u32) -> Option<&[u8]> {
    Some(CStr::from_bytes_until_nul(strings.get(at as usize..)?).ok()?.to_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_running_kernel() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let structs = Structs::parse(&btf).expect("a valid blob");
        assert_eq!(structs.offset("list_head", "prev"), Some(8));
        // In an anonymous union of `struct sock_common`.
        assert!(structs.offset("sock_common", "skc_dport").is_some_and(|offset| offset > 0));
        assert_eq!(structs.offset("task_struct", "no_such_member"), None);
        assert_eq!(structs.offset("no_such_structure", "next"), None);
        assert!(structs.function("no_such_function").is_none());
        assert!(structs.function("tcp_abort").is_some());
        assert!(structs.has_enum("bpf_map_type") && structs.has_enumerator("BPF_MAP_TYPE_HASH"));
        assert!(!structs.has_enum("no_such_enum") && !structs.has_enumerator("NO_SUCH_VALUE"));
    }

    #[test]
    fn members_of_members() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let structs = Structs::parse(&btf).expect("a valid blob");
        let at = |structure, path| structs.offset(structure, path).expect("a member");
        // By a typedef (`wait_queue_head_t`), two deep, and beside what stands in it.
        assert_eq!(at("eventpoll", "wq.head.prev"), at("eventpoll", "wq") + at("wait_queue_head", "head") + 8);
        assert_eq!(at("epitem", "ffd.fd"), at("epitem", "ffd") + 8);
        // Of a structure without a name.
        assert!(at("inet_connection_sock", "icsk_ack.lrcvtime") > at("inet_connection_sock", "icsk_ack"));
        // A pointer leads elsewhere.
        assert_eq!(structs.offset("task_struct", "signal.live"), None);
    }

    proptest! {
        #[test]
        fn garbage_is_refused(blob: Vec<u8>) {
            let _ = Structs::parse(&blob).map(|structs| (structs.offset("a", "b.c"), structs.function("a")));
        }
    }
}
