//! Hostile bytes for what lies in captured files: configurations of nginx, certificates, ACLs.

use super::{acl, certificates, nginx_conf};
use crate::base::fuzz::Fuzz;

#[test]
fn sweep_nginx_configurations() {
    let words = ["{", "}", ";", "\"", "'", "\\", "#", "\n", "_by_lua_block {", "include ", "$", "${"];
    Fuzz::of("nginx").words(&words).run(|bytes| drop(nginx_conf::directives(&String::from_utf8_lossy(bytes))));
}

#[test]
fn sweep_certificates_and_keys() {
    let words =
        ["-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\n", "MII", "=\n"];
    Fuzz::of("certificate").words(&words).run(|bytes| drop(certificates::read(bytes)));
    // Behind the armour, which would catch most changes.
    let pair = String::from_utf8(std::fs::read("tests/corpus/certificate/pair").unwrap()).unwrap();
    let armour = |pem: &str| pem.lines().filter(|l| !l.starts_with('-')).collect::<String>();
    let der = |pem: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.decode(armour(pem)).unwrap()
    };
    let (certificate, key) = pair.split_once("-----END CERTIFICATE-----").unwrap();
    Fuzz::of("der")
        .seed(der(certificate))
        .seed(der(key))
        .words(&[&b"\x30\x82\xff\xff"[..], b"\x30\x80", b"\0", b"\x2a\x86"])
        .run(|bytes| {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            for label in ["CERTIFICATE", "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
                let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
                drop(certificates::read(pem.as_bytes()));
            }
        });
}

#[test]
fn sweep_acls() {
    let text = "user::rw-,user:1000:r--,group::r--,mask::rwx,other::---";
    let fuzz = Fuzz::of("acl").seed(text).seed(acl::from_text(text).unwrap());
    fuzz.words(&["user:", "group:", "mask::", ",", "\n", ":4294967295:", "rwx", "#"]).run(|bytes| {
        acl::owning_group(bytes);
        if let Some(value) = std::str::from_utf8(bytes).ok().and_then(acl::from_text) {
            assert!(acl::to_text(&value).is_some() || value.len() > 4);
        }
        if let Some(text) = acl::to_text(bytes).filter(|t| !t.is_empty()) {
            let back = acl::from_text(&text).unwrap();
            assert_eq!(acl::to_text(&back).map(|t| t.len()), Some(text.len()));
        }
    });
}
