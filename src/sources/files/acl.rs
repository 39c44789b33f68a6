//! POSIX ACLs between the kernel's extended attribute and the text that GNU tar, star and libarchive exchange as
//! `SCHILY.acl.access` and `SCHILY.acl.default` (`acl(5)`, "long text form", with numeric ids only).
//!
//! The attribute (`linux/posix_acl_xattr.h`): u32 version 2, then entries of u16 tag, u16 permissions, u32 id, all
//! little-endian.

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

const TAGS: [(u16, &str, bool); 6] = [
    (0x01, "user", false),
    (0x02, "user", true),
    (0x04, "group", false),
    (0x08, "group", true),
    (0x10, "mask", false),
    (0x20, "other", false),
];

/// The attribute's value as text; `None` when it is not a version 2 ACL.
pub fn to_text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut text = Vec::new();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let (_, name, with_id) = TAGS.iter().find(|t| t.0 == tag)?;
        if permissions > 7 || (!with_id && id != NO_ID) {
            return None;
        }
        let id = if *with_id { id.to_string() } else { String::new() };
        let bit = |mask: u16, letter: char| if permissions & mask != 0 { letter } else { '-' };
        text.push(format!("{name}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')));
    }
    Some(text.join(","))
}

/// The text as the attribute's value; `None` when it is not an ACL, or names its users instead of numbering them.
/// star's fourth field, a numeric id behind a name, is understood.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for line in text.split([',', '\n']).map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, qualifier, permissions, rest @ ..] = fields.as_slice() else { return None };
        let with_id = !qualifier.is_empty();
        let (tag, ..) = TAGS.iter().find(|t| (t.1 == *name || t.1.starts_with(name)) && t.2 == with_id)?;
        let id = match (with_id, rest) {
            (false, _) => NO_ID,
            (true, [id]) => id.parse().ok()?,
            (true, _) => qualifier.parse().ok()?,
        };
        let mut bits = 0u16;
        for c in permissions.chars() {
            bits |= match c {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return None,
            };
        }
        entries.push((*tag, id, bits));
    }
    if entries.is_empty() {
        return None;
    }
    // The kernel wants them by tag, then by id.
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Some(value)
}

/// What an access ACL's attribute gives the owning group: its permissions within the mask.
pub fn owning_group(value: &[u8]) -> Option<u16> {
    let entries = value.get(4..)?.chunks_exact(8);
    let of = |wanted: u16| {
        let mut entries = entries.clone();
        let found = entries.find(|e| u16::from_le_bytes([e[0], e[1]]) == wanted)?;
        Some(u16::from_le_bytes([found[2], found[3]]) & 7)
    };
    Some(of(0x04)? & of(0x10).unwrap_or(7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attribute_agree() {
        let text = "user::rw-,user:1000:r--,user:65534:rwx,group::r--,group:27:r-x,mask::rwx,other::---";
        let value = from_text(text).unwrap();
        assert_eq!(value.len(), 4 + 7 * 8);
        assert_eq!(to_text(&value).unwrap(), text);
        assert_eq!(
            from_text("user::rw-,user:joe:r--:1000,group::r--,mask::r--,other::---").map(|v| v[14..18].to_vec()),
            Some(vec![4, 0, 0xe8, 3])
        );
        assert_eq!(from_text("user:joe:r--"), None);
        assert_eq!((owning_group(&value), owning_group(b""), owning_group(&[2, 0, 0, 0, 9])), (Some(4), None, None));
        let within = from_text("user::rw-,group::rwx,mask::r-x,other::---").unwrap();
        assert_eq!(owning_group(&within), Some(5));
        assert_eq!(to_text(b"\x01\0\0\0"), None);
        assert_eq!(to_text(&value[..value.len() - 1]), None);
    }
}
