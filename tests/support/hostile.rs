//! Tars that no honest program writes.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use tar::{EntryType, Header};

/// A tar made block by block, with whatever lies in it.
#[derive(Default)]
pub struct Hostile(pub Vec<u8>);

impl Hostile {
    pub fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(size);
        header.set_cksum();
        header
    }

    pub fn push(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &[u8], content: &[u8]) -> Self {
        self.push(&Self::header(name, EntryType::Regular, content.len() as u64), content)
    }

    pub fn dir(self, name: &[u8]) -> Self {
        self.push(&Self::header(name, EntryType::Directory, 0), b"")
    }

    pub fn special(self, name: &[u8], kind: EntryType, target: &[u8]) -> Self {
        let mut header = Self::header(name, kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        self.push(&header, b"")
    }

    pub fn symlink(self, name: &[u8], target: &[u8]) -> Self {
        self.special(name, EntryType::Symlink, target)
    }

    pub fn hardlink(self, name: &[u8], target: &[u8]) -> Self {
        self.special(name, EntryType::Link, target)
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.push(&Self::header(b"pax", EntryType::XHeader, body.len() as u64), &body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}
