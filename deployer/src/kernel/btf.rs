//! Field offsets in the running kernel, from its BTF.
//!
//! Rust emits no CO-RE relocations, so programs that follow kernel structures get offsets as globals before loading.
//! The format is `Documentation/bpf/btf.rst`; only what leads from a structure's name to a member's offset is read.

use std::collections::HashMap;

const HEADER: usize = 24;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// The structures of a BTF blob, indexed by name.
pub struct Structs<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
    by_name: HashMap<&'a [u8], usize>,
}

struct Type<'a> {
    kind: u32,
    /// For structures and unions, their members of 12 bytes: name, type, offset in bits.
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
        let mut types = vec![Type { kind: 0, members: &[] }];
        let mut by_name = HashMap::new();
        let mut at = 0;
        while at < data.len() {
            let (name, info) = (u32_at(data, at)?, u32_at(data, at + 4)?);
            let kind = info >> 24 & 0x1f;
            let len = extra(kind, info & 0xffff)?;
            let members = data.get(at + 12..at + 12 + len)?;
            if kind == KIND_STRUCT {
                by_name.entry(text(strings, name)?).or_insert(types.len());
            }
            types.push(Type { kind, members });
            at += 12 + len;
        }
        Some(Self { types, strings, by_name })
    }

    /// Offset in bytes of a member of a structure, also where it stands in an anonymous structure or union inside.
    #[must_use]
    pub fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let index = *self.by_name.get(structure.as_bytes())?;
        self.bits(index, member.as_bytes(), 0).map(|bits| bits / 8)
    }

    fn bits(&self, index: usize, member: &[u8], depth: u32) -> Option<u32> {
        let kind = self.types.get(index)?;
        // Anonymous nesting in the kernel is two or three deep; the bound stops a blob that contains itself.
        if depth > 8 || !matches!(kind.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        kind.members.chunks_exact(12).find_map(|entry| {
            let name = text(self.strings, u32_at(entry, 0)?)?;
            // With kind_flag set, the top byte is a bit field's size; offsets stay below 2^24 bits either way.
            let here = u32_at(entry, 8)? & 0x00ff_ffff;
            if name == member {
                return Some(here);
            }
            let inner = name.is_empty().then(|| self.bits(u32_at(entry, 4)? as usize, member, depth + 1));
            Some(here + inner??)
        })
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
    strings.get(at as usize..)?.split(|byte| *byte == 0).next()
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
    }

    proptest! {
        #[test]
        fn garbage_is_refused(blob: Vec<u8>) {
            let _ = Structs::parse(&blob).map(|structs| structs.offset("a", "b"));
        }
    }
}
