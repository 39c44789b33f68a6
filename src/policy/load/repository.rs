//! `[repository]`: where snapshots go, and for whom they are encrypted.

use super::{each_once, needed_section};
use crate::policy::document::{Bad, Item, Table, Text, holds_private_key, quote};
use crate::policy::model::{CopyTo, Credentials, MinFree, Reach, Repository, RepositoryUrl};
use crate::policy::values;
use std::path::Path;

/// Fields that a repository in a folder does not have.
pub const S3_FIELDS: [&str; 5] = ["endpoint", "region", "credentials", "path_style", "object_lock"];

pub(super) fn repository(document: &Table<'_>, root: &Path) -> Option<Repository> {
    let table = needed_section(document, "repository")?;
    let url = table.needed("url", None).and_then(|t| table.report.ok(t.at, values::repository_url(t.text)));
    let copies = copies(&table, root, url.as_ref());
    let recipients = recipients(&table);
    let repository = Repository {
        reach: reach(&table, root),
        identity: table.optional("identity", |text| identity(root, text)),
        compression: table.number("compression", 3, 1..=19i32),
        min_free: table.parsed("min_free", MinFree::default(), values::min_free),
        url: url.clone().unwrap_or_else(|| RepositoryUrl::Local("/".into())),
        recipients,
        copies,
    };
    let is_s3 = |url: &RepositoryUrl| matches!(url, RepositoryUrl::S3 { .. });
    if url.is_some()
        && !is_s3(&repository.url)
        && !repository.copies.iter().any(|copy| copy.reach.is_none() && is_s3(&copy.url))
    {
        for field in S3_FIELDS.into_iter().filter(|field| table.has(field)) {
            let message = format!("{field:?} contradicts the url: it belongs to an s3:// repository");
            table.contradiction(field, message, "write url = \"s3://bucket/prefix\", or leave it out");
        }
    }
    table.finish();
    url.map(|_| repository)
}

fn identity(root: &Path, text: &str) -> Result<std::path::PathBuf, Bad> {
    if text.contains("://") {
        return Err(Bad::new(format!("{} is not a path", quote(text))));
    }
    values::path(root, text)
}

/// Each a URL, or a table for one that is reached in a way of its own.
fn copies(table: &Table<'_>, root: &Path, url: Option<&RepositoryUrl>) -> Vec<CopyTo> {
    let mut seen: Vec<RepositoryUrl> = url.cloned().into_iter().collect();
    let first = seen.len();
    let mut new_url = |text: &str| {
        let copy = values::repository_url(text)?;
        if seen[..first].contains(&copy) {
            return Err(Bad::new("the copy is the repository itself"));
        }
        if seen.contains(&copy) {
            return Err(Bad::new(format!("{} is listed twice", quote(text))));
        }
        seen.push(copy.clone());
        Ok(copy)
    };
    let copy = |item: Item<'_>| match item {
        Item::Text(text) => {
            let url = table.report.ok(text.at, new_url(text.text))?;
            Some(CopyTo { url, reach: None })
        }
        Item::Table(copy) => {
            let url = copy.needed("url", None).and_then(|t| copy.report.ok(t.at, new_url(t.text)));
            let reach = reach(&copy, root);
            if matches!(url, Some(RepositoryUrl::Local(_))) {
                let hint = "write the path alone, as a string";
                copy.contradiction("url", "a local copy needs no table: its fields belong to an s3:// one", hint);
            }
            copy.finish();
            Some(CopyTo { url: url?, reach: Some(reach) })
        }
    };
    table.items("copies").into_iter().filter_map(copy).collect()
}

fn reach(table: &Table<'_>, root: &Path) -> Reach {
    let endpoint = table.optional("endpoint", values::http_url);
    Reach {
        path_style: table.flag("path_style", endpoint.is_some()),
        region: table.string("region"),
        credentials: table.parsed("credentials", Credentials::Default, |text| values::credentials(root, text)),
        limit_upload: table.optional("limit_upload", values::rate),
        object_lock: table.optional("object_lock", values::duration),
        endpoint,
    }
}

/// Never empty: what nobody can open is no backup, and nothing is stored in clear.
fn recipients(table: &Table<'_>) -> Vec<String> {
    const HINT: &str = "nothing is stored unencrypted; `lifeboat keys new` makes a key and prints its recipient";
    if !table.has("recipients") {
        table.missing("recipients", Some(HINT));
        return Vec::new();
    }
    let Some(texts) = table.texts("recipients", true) else { return Vec::new() };
    if texts.is_empty() && table.is_empty_array("recipients") {
        table.report.hinted(table.value_at("recipients"), "\"recipients\" is empty", HINT);
    }
    // An identity among them has been reported as the private key that it is.
    let public: Vec<Text<'_>> = texts.into_iter().filter(|t| !holds_private_key(t.text)).collect();
    each_once(table, &public, values::recipient)
}
