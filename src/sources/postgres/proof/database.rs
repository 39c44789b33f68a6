//! One captured database: restored, and held against its facts.

use super::server::{Ask, Kind, Server};
use super::things::{Things, Traits, count, grouped, list, yes};
use super::{indexes, rows, subject};
use crate::sources::SourceError;
use crate::sources::postgres::facts::{Counts, Database, Extension, Migrations, Properties, Schema, Sequence, Table};
use crate::sources::postgres::load::{LoadError, Loader, available, missing_extensions, properties_sql};
use crate::sources::postgres::session::{Session, SessionError};
use crate::sources::postgres::{catalog, grants, migrations};
use crate::sources::proof::{Check, Difference, Proof};
use std::collections::HashMap;

/// What has come back, for the summary.
#[derive(Debug, Default)]
pub(super) struct Restored {
    pub tables: u64,
    pub rows: u64,
}

/// Restores a database; `false` when it did not come back, which is a failed check then.
pub(super) fn restore(
    ask: &Ask<'_>,
    server: &Server,
    captured: &Database,
    proof: &mut Proof,
) -> Result<bool, SourceError> {
    let options: &[&str] = match server.has_roles() {
        true => &[],
        false => &["--no-owner", "--no-privileges", "--no-tablespaces"],
    };
    let loader = Loader {
        connection: &server.connection,
        stage: &server.stage,
        streams: ask.trial.streams,
        version: server.version,
        jobs: super::jobs(),
        options,
        with_owners: server.has_roles(),
        deadline: ask.deadline,
        cancel: ask.trial.cancel,
    };
    let expected = count(captured.tables.len(), "table", "tables");
    let failed = |why: String| Check::failed("restore", subject(captured), &expected, "not restored", why);
    match load(ask, server, captured, &loader) {
        Ok(()) => {
            proof.add(Check::passed("restore", subject(captured), &expected, "restored without an error"));
            Ok(true)
        }
        Err(LoadError::Refused(why)) => {
            proof.add(failed(why));
            Ok(false)
        }
        Err(LoadError::Other(error)) => {
            ask.trial.cancel.check()?;
            match error {
                // The snapshot's own fault, or the tool's.
                SourceError::Problem { .. } | SourceError::Place(_) => {
                    proof.add(failed(error.to_string()));
                    Ok(false)
                }
                other => Err(other),
            }
        }
    }
}

fn load(ask: &Ask<'_>, server: &Server, captured: &Database, loader: &Loader<'_>) -> Result<(), LoadError> {
    let (name, via) = (server.database(&captured.name), super::via(server));
    let missing = missing_extensions(captured, &available(loader, via)?, ask.major());
    if !missing.is_empty() {
        let told: Vec<String> = missing
            .iter()
            .map(|(name, package)| match package {
                Some(package) => format!("{name} (Debian: {package})"),
                None => name.clone(),
            })
            .collect();
        return Err(LoadError::Refused(format!("the drill's server has no extension {}", told.join(", "))));
    }
    loader.database(&name, via, captured)?;
    match &server.kind {
        Kind::Given(given) => loader.script(via, &given.comment(&name)),
        _ => loader.script(via, &properties_sql(&name, &captured.properties)),
    }
}

/// Holds a restored database against its facts.
pub(super) fn compare(
    ask: &Ask<'_>,
    server: &Server,
    captured: &Database,
    proof: &mut Proof,
) -> Result<Restored, SourceError> {
    let name = server.database(&captured.name);
    let within = |e: SessionError| {
        e.into_source(&server.connection, &format!("look into restored database {:?}", captured.name))
    };
    let mut session = Session::open(&server.connection, &name, ask.deadline, ask.trial.cancel).map_err(within)?;
    let tables = catalog::tables(&mut session).map_err(within)?;
    let columns = match captured.tables.iter().any(|t| t.content.is_some()) {
        true => catalog::columns(&mut session).map_err(within)?,
        false => HashMap::new(),
    };
    let owners = server.has_roles();
    if owners {
        let found = catalog::properties(&mut session).map_err(within)?;
        whole(proof, captured, "properties", properties(&captured.properties), properties(&found));
    } else {
        proof.add(Check::skipped("properties", subject(captured), "the scratch server has roles of its own"));
    }
    let found = catalog::schemas(&mut session).map_err(within)?;
    let (expected, found) = (schemas(&captured.schemas, owners), schemas(&found, owners));
    things(proof, captured, "schemas", ("schema", "schemas"), expected, found);
    let found = catalog::extensions(&mut session).map_err(within)?;
    let (expected, found) = (extensions(&captured.extensions), extensions(&found));
    things(proof, captured, "extensions", ("extension", "extensions"), expected, found);
    let (expected, found) = (table_traits(&captured.tables, owners), table_traits(&tables, owners));
    things(proof, captured, "tables", ("table or view", "tables and views"), expected, found);
    compare_grants(proof, captured, owners, &mut session).map_err(within)?;
    let found = catalog::sequences(&mut session).map_err(within)?;
    proof.add(sequences(captured, &found, owners));
    let found = catalog::counts(&mut session).map_err(within)?;
    whole(proof, captured, "definitions", counts(&captured.counts), counts(&found));
    if !captured.migrations.is_empty() {
        let found = migrations::migrations(&mut session).map_err(within)?;
        let (expected, found) = (migration_heads(&captured.migrations), migration_heads(&found));
        things(proof, captured, "migrations", ("migration table", "migration tables"), expected, found);
    }
    for (what, expected, found) in [
        ("publications", &captured.publications, catalog::publications(&mut session).map_err(within)?),
        ("subscriptions", &captured.subscriptions, catalog::subscriptions(&mut session).map_err(within)?),
    ] {
        let named = |names: &[String]| names.iter().map(|n| (n.clone(), Vec::new())).collect::<Things>();
        if !expected.is_empty() || !found.is_empty() {
            things(proof, captured, what, (what.trim_end_matches('s'), what), named(expected), named(&found));
        }
    }
    large_objects(proof, captured, &mut session).map_err(within)?;
    session.close().map_err(within)?;
    let rows = rows::compare(ask, server, captured, &tables, &columns, proof)?;
    proof.add(indexes::check(ask, server, captured)?);
    let own = tables.iter().filter(|t| matches!(t.kind.as_str(), "table" | "partitioned table")).count();
    Ok(Restored { tables: own as u64, rows })
}

/// A check of a list of things.
fn things(
    proof: &mut Proof,
    captured: &Database,
    name: &str,
    (one, many): (&str, &str),
    expected: Things,
    found: Things,
) {
    let differences = expected.differences(&found);
    let (all, there) = (count(expected.len(), one, many), count(found.len(), one, many));
    proof.add(Check::of(name, subject(captured), all, there, differences));
}

/// A check of one thing's traits, each a subject of its own.
fn whole(proof: &mut Proof, captured: &Database, name: &str, expected: Traits, found: Traits) {
    let differences: Vec<Difference> = expected
        .iter()
        .zip(&found)
        .filter(|(a, b)| a != b)
        .map(|((name, a), (_, b))| Difference::new(*name, nothing(a), nothing(b)))
        .collect();
    let found = format!("{} of {} as they were", expected.len() - differences.len(), expected.len());
    proof.add(Check::of(name, subject(captured), format!("all {}", expected.len()), found, differences));
}

fn nothing(value: &str) -> String {
    if value.is_empty() { "nothing".into() } else { value.into() }
}

fn properties(p: &Properties) -> Traits {
    let settings: Vec<String> = p
        .settings
        .iter()
        .flat_map(|s| {
            let role = s.role.as_ref().map(|r| format!("{r}: ")).unwrap_or_default();
            s.values.iter().map(move |v| format!("{role}{v}"))
        })
        .collect();
    vec![
        ("owner", p.owner.clone()),
        ("encoding", p.encoding.clone()),
        ("collation", p.collate.clone()),
        ("character type", p.ctype.clone()),
        ("locale provider", p.locale_provider.clone()),
        ("locale", p.locale.clone().unwrap_or_default()),
        ("collation rules", p.icu_rules.clone().unwrap_or_default()),
        ("tablespace", p.tablespace.clone()),
        ("connection limit", p.connection_limit.to_string()),
        ("privileges", list(p.acl.as_deref().unwrap_or_default())),
        ("comment", p.comment.clone().unwrap_or_default()),
        ("settings", list(&settings)),
    ]
}

fn schemas(all: &[Schema], owners: bool) -> Things {
    let traits = |s: &Schema| match owners && s.extension.is_none() {
        true => vec![("owner", s.owner.clone())],
        false => Vec::new(),
    };
    all.iter().map(|s| (s.name.clone(), traits(s))).collect()
}

fn extensions(all: &[Extension]) -> Things {
    all.iter().map(|e| (e.name.clone(), vec![("version", e.version.clone()), ("schema", e.schema.clone())])).collect()
}

fn table_traits(all: &[Table], owners: bool) -> Things {
    let traits = |t: &Table| {
        let mut traits = vec![("kind", t.kind.clone()), ("persistence", t.persistence.clone())];
        traits.push(("partition", yes(t.partition)));
        traits.push(("extension", t.extension.clone().unwrap_or_default()));
        // Who made an extension owns its tables, and no dump says who that was.
        if owners && t.extension.is_none() {
            traits.push(("owner", t.owner.clone()));
        }
        traits
    };
    all.iter().map(|t| (format!("{}.{}", t.schema, t.name), traits(t))).collect()
}

fn compare_grants(
    proof: &mut Proof,
    captured: &Database,
    owners: bool,
    session: &mut Session,
) -> Result<(), SessionError> {
    let Some(expected) = captured.grants.as_ref().filter(|_| owners) else {
        let why = match owners {
            true => "the snapshot does not tell what was granted",
            false => "the scratch server has roles of its own",
        };
        proof.add(Check::skipped("grants", subject(captured), why));
        return Ok(());
    };
    let found = grants::grants(session)?;
    let all = |grants: &[crate::sources::postgres::facts::Grant]| -> Things {
        grants.iter().map(|g| (g.object.clone(), vec![("granted", list(&g.holders))])).collect()
    };
    things(proof, captured, "grants", ("object with grants", "objects with grants"), all(expected), all(&found));
    Ok(())
}

/// A value that moved while the dump was made lies between the two that were read.
fn sequences(captured: &Database, found: &[Sequence], owners: bool) -> Check {
    let name = |s: &Sequence| format!("{}.{}", s.schema, s.name);
    let value = |s: &Sequence| format!("{}{}", s.last_value, if s.is_called { "" } else { " (not used yet)" });
    let mut differences = Vec::new();
    for expected in &captured.sequences {
        let Some(there) = found.iter().find(|s| s.schema == expected.schema && s.name == expected.name) else {
            differences.push(Difference::new(name(expected), value(expected), "missing"));
            continue;
        };
        let same = match expected.last_value_after {
            None => (there.last_value, there.is_called) == (expected.last_value, expected.is_called),
            Some(after) => {
                (expected.last_value.min(after)..=expected.last_value.max(after)).contains(&there.last_value)
            }
        };
        if !same {
            let wanted = match expected.last_value_after {
                None => value(expected),
                Some(after) => format!("{} to {after}", expected.last_value),
            };
            differences.push(Difference::new(name(expected), wanted, value(there)));
        }
        if owners && there.owner != expected.owner {
            let (wanted, found) = (format!("owner {}", expected.owner), format!("owner {}", there.owner));
            differences.push(Difference::new(name(expected), wanted, found));
        }
    }
    let known = |s: &&Sequence| captured.sequences.iter().any(|e| e.schema == s.schema && e.name == s.name);
    let besides = found.iter().filter(|s| !known(s));
    differences.extend(besides.map(|s| Difference::new(name(s), "nothing", value(s))));
    let (all, there) =
        (count(captured.sequences.len(), "sequence", "sequences"), count(found.len(), "sequence", "sequences"));
    Check::of("sequences", subject(captured), all, there, differences)
}

fn counts(c: &Counts) -> Traits {
    vec![
        ("indexes", c.indexes.to_string()),
        ("constraints", c.constraints.to_string()),
        ("functions", c.functions.to_string()),
        ("triggers", c.triggers.to_string()),
        ("types", c.types.to_string()),
        ("policies", c.policies.to_string()),
        ("event triggers", c.event_triggers.to_string()),
    ]
}

fn migration_heads(all: &[Migrations]) -> Things {
    let traits = |m: &Migrations| {
        vec![("tool", m.tool.clone()), ("applied", m.applied.to_string()), ("head", m.head.join(", "))]
    };
    all.iter().map(|m| (format!("{}.{}", m.schema, m.table), traits(m))).collect()
}

fn large_objects(proof: &mut Proof, captured: &Database, session: &mut Session) -> Result<(), SessionError> {
    let expected = &captured.large_objects;
    let with_content = expected.content.is_some();
    let found = catalog::large_objects(session, with_content)?;
    if expected.count == 0 && found.count == 0 {
        return Ok(());
    }
    let mut differences = Vec::new();
    if expected.count != found.count {
        differences.push(Difference::new("count", grouped(expected.count), grouped(found.count)));
    }
    if with_content && expected.content != found.content {
        let told = |content: &Option<String>| content.clone().unwrap_or_else(|| "unreadable".into());
        differences.push(Difference::new("content", told(&expected.content), told(&found.content)));
    }
    let told = |n: u64| count(n as usize, "large object", "large objects");
    proof.add(Check::of("large objects", subject(captured), told(expected.count), told(found.count), differences));
    Ok(())
}
