//! The certificate that a server really shows: whether it is trusted for that name, and how long it is good.

use crate::base::units::human_duration;
use chrono::{DateTime, TimeDelta, Utc};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// This machine's authorities, read once.
pub fn roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    // A file that cannot be read costs its authorities; a server that needs them says so.
    ROOTS.get_or_init(|| rustls_native_certs::load_native_certs().certs)
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Connects once, and looks.
pub fn check(address: &str, min_days: u32, timeout: Duration, now: DateTime<Utc>) -> Result<(), String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots().iter().cloned());
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    let mut stream = super::connect(address, timeout)?;
    let limit = Some(timeout.max(Duration::from_millis(1)));
    stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit)).map_err(|e| e.to_string())?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|e| e.to_string())?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|e| e.to_string())?;
    }
    let shown = connection.peer_certificates().and_then(|chain| chain.first());
    let shown = shown.ok_or("it shows no certificate")?;
    let (_, certificate) = x509_parser::parse_x509_certificate(shown).map_err(|e| e.to_string())?;
    let end = DateTime::from_timestamp(certificate.validity().not_after.timestamp(), 0).ok_or("its end is no date")?;
    good_for(end, min_days, now)
}

fn good_for(end: DateTime<Utc>, min_days: u32, now: DateTime<Utc>) -> Result<(), String> {
    if end - now >= TimeDelta::days(i64::from(min_days)) {
        return Ok(());
    }
    match (end - now).to_std() {
        Ok(left) => Err(format!("it ends in {}, and {min_days} days must be left", human_duration(left))),
        Err(_) => Err(format!("it ended {}", crate::base::time::relative(end, now))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_to_the_end() {
        let now: DateTime<Utc> = "2026-11-21T12:00:00Z".parse().unwrap();
        let at = |days| good_for(now + TimeDelta::days(days), 14, now);
        assert!(at(14).is_ok() && at(90).is_ok());
        assert!(at(13).unwrap_err().contains("14 days must be left"));
        assert!(at(-1).unwrap_err().contains("it ended"));
    }
}
