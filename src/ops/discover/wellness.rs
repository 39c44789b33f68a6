//! Health checks that pass now: pages that answer on published ports, and containers that tell that they are healthy.

use super::find::{Discovery, Well, text};
use super::scene::{Scene, host_ports};
use crate::ops::health::http;
use crate::place::inspect::Container;
use std::time::Duration;

/// Pages by which applications tell of their health.
const PAGES: [&str; 5] = ["/health", "/healthz", "/api/health", "/health/ready", "/up"];
/// The longest that one page is waited for.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) fn find(scene: &Scene<'_>, found: &mut Discovery) {
    for service in scene.services.iter().filter(|s| s.store.is_none()) {
        let Some(container) = service.container.as_ref().filter(|c| c.is_running()) else { continue };
        if let Some(well) =
            host_ports(container).find_map(|(inside, port)| page(container, &service.name, inside, port))
        {
            found.health.push(well);
        } else if container.health.as_deref() == Some("healthy") {
            let because = format!("Service {} has a health check of its own.", service.name);
            found.health.push(Well { because, fields: vec![("container", text(&service.name))] });
        }
    }
}

/// A page of a published port that answers with 200 now.
fn page(container: &Container, service: &str, inside: u16, port: u16) -> Option<Well> {
    let own = container.health_test.iter().find_map(|word| path_in(word, inside));
    let pages = own.into_iter().chain(PAGES.map(str::to_owned));
    for page in pages {
        let url = format!("http://127.0.0.1:{port}{page}");
        match http::check(&url, 200, &[], LIMIT) {
            Ok(()) => {
                let because = format!("Service {service} answers there now.");
                let mut fields = vec![("http", text(&url))];
                let ok = [("status".to_owned(), "ok".to_owned())];
                if http::check(&url, 200, &ok, LIMIT).is_ok() {
                    let mut said = toml::Table::new();
                    said.insert("status".to_owned(), text("ok"));
                    fields.push(("json", toml::Value::Table(said)));
                }
                return Some(Well { because, fields });
            }
            // Nobody there speaks HTTP: no other page will answer either.
            Err(said) if !said.starts_with("it answers") => return None,
            Err(_) => {}
        }
    }
    None
}

/// The path of a URL to this port in a word of a health check's command: `curl -fs http://127.0.0.1:8000/health`.
fn path_in(word: &str, port: u16) -> Option<String> {
    let url = word.split_whitespace().find_map(|w| w.split_once("http://"))?.1;
    let url = url.trim_end_matches(['"', '\'', ')', ';']);
    let (server, path) = url.split_once('/')?;
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.'));
    let its_port = server.rsplit_once(':').map_or(80, |(_, p)| p.parse().unwrap_or(0));
    (plain && its_port == port).then(|| format!("/{path}"))
}
