//! An attacker with the storage and the recipients, but no signing key; and a thief of a signing key that may sign
//! garbage. Nothing of theirs restores, nothing of it is silent, and what is not signed is not even opened.

#[path = "support/rigged.rs"]
mod rigged;
#[path = "support/world.rs"]
mod world;

use lifeboat::base::cancel::Cancel;
use lifeboat::base::ids::{ChunkId, DedupKeyId, ObjectId, RecipientSetId, Sequence};
use lifeboat::base::stream::StreamKind;
use lifeboat::ops::access::{Access, AccessRequest};
use lifeboat::ops::verify::{Finding, VerifyReport};
use lifeboat::ops::{ErrorKind, OpsError};
use lifeboat::pipeline::chunk::ChunkIdKey;
use lifeboat::pipeline::crypt::{self, Recipients, object_id};
use lifeboat::pipeline::sign::{Namespace, SigningKey};
use lifeboat::repository::chain::{Chain, NameError, Snapshot, resolve};
use lifeboat::repository::format::{
    Encoding, IdsTree, IndexArchive, IndexChunk, IndexObject, LastGood, Notes, Role, SignerAction, StreamEntry,
};
use lifeboat::repository::keys::HostKey;
use lifeboat::repository::reader::{load_manifest, load_refs};
use lifeboat::repository::{RepositoryError, layout};
use lifeboat::storage::StorageKey;
use rigged::Rigged;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::sync::Arc;
use world::{DEEP, OBJECTS, READ_DATA, World, host, noise};

fn stranger() -> SigningKey {
    SigningKey::from_seed(&[66; 32])
}

/// Three snapshots of one source.
fn site() -> (World, Vec<u8>) {
    let world = World::memory();
    let bytes = noise(1, 600_000);
    world.snapshot(&[("a", &bytes)]);
    world.snapshot(&[("a", &bytes), ("b", b"two")]);
    world.snapshot(&[("a", &bytes), ("b", b"three")]);
    (world, bytes)
}

fn newest(world: &World) -> Snapshot {
    world.chain().all().next_back().unwrap().clone()
}

fn line_of(object: &[u8]) -> Value {
    let text = std::str::from_utf8(object).unwrap();
    serde_json::from_str(text.lines().next().unwrap()).unwrap()
}

/// Signs a header that differs from the newest one, and stores it under the name that it claims.
fn add_header(world: &World, key: &SigningKey, edit: impl FnOnce(&mut Value)) -> StorageKey {
    let before = newest(world);
    let mut header = line_of(&world.get(&before.key));
    let sequence = before.header.sequence.0 + 1;
    header["sequence"] = json!(sequence);
    header["id"] = json!(world::id(Sequence(sequence)));
    header["previous"] = json!(before.header_id);
    edit(&mut header);
    let (host, policy) = (header["host"].as_str().unwrap(), header["policy"].as_str().unwrap());
    let (sequence, id) = (header["sequence"].as_u64().unwrap(), header["id"].as_str().unwrap());
    let name: StorageKey = format!("snapshots/{host}/{policy}/{sequence:010}.{id}.json").parse().unwrap();
    world.storage.put_new(&name, &key.sign(Namespace::Snapshot, &header.to_string()).unwrap()).unwrap();
    name
}

fn about<'a>(report: &'a VerifyReport, object: &str) -> &'a Finding {
    let finding = report.findings.iter().find(|f| f.object == object);
    finding.unwrap_or_else(|| panic!("{object} is not among {:?}", report.findings))
}

/// Three snapshots are there and read as they were; the forged object is named; nothing sealed was read to tell.
fn refused(world: &World, bytes: &[u8], forged: &StorageKey, problem: &str) {
    let rigged = Arc::new(Rigged::new(world.storage.clone()));
    let watched = world.over(rigged.clone());
    let report = watched.verify_as_stranger(OBJECTS).unwrap();
    let finding = about(&report, forged.as_str());
    assert!(finding.problem.contains(problem), "{finding:?} does not say {problem:?}");
    for sealed in ["manifests", "archives", "index"] {
        assert!(
            !rigged.prefixes_read().contains(&sealed.to_owned()),
            "{sealed} was read: {:?}",
            rigged.prefixes_read()
        );
    }
    let chain = world.chain();
    assert_eq!(chain.all().count(), 3);
    for snapshot in chain.all() {
        assert!(world.read(snapshot)[0].1 == bytes);
    }
}

#[test]
fn a_header_by_another_key_is_no_snapshot() {
    let (world, bytes) = site();
    let forged = add_header(&world, &stranger(), |_| ());
    refused(&world, &bytes, &forged, "does not vouch for");
    // Not even for somebody who asks for the newest, or for it by name.
    let chain = world.chain();
    let all: Vec<&Snapshot> = chain.all().collect();
    assert_eq!(resolve(&all, "latest", None).unwrap().header.sequence, Sequence(3));
    assert!(resolve(&all, "00000004", None).is_err());
}

#[test]
fn a_header_by_the_right_key_is_no_snapshot_elsewhere() {
    let (world, bytes) = site();
    let good = world.get(&newest(&world).key);
    let id = newest(&world).header.id;
    for place in ["web-2/shop/0000000003", "web-1/blog/0000000003", "web-1/shop/0000000004"] {
        let world = world.copy();
        let moved: StorageKey = format!("snapshots/{place}.{id}.json").parse().unwrap();
        world.set(&moved, &good);
        // Of another host than the signer's, or moved.
        refused(&world, &bytes, &moved, if place.starts_with("web-2") { "may not sign" } else { "has been moved" });
    }
    // Under another id.
    let copy = world.copy();
    let moved: StorageKey = "snapshots/web-1/shop/0000000003.20261122T000000Z-12345678.json".parse().unwrap();
    copy.set(&moved, &good);
    refused(&copy, &bytes, &moved, "has been moved");
    for odd in
        ["snapshots/web-1/shop/3.json", "snapshots/x", "snapshots/web-1/shop/0000000000.20261122T000000Z-12345678.json"]
    {
        let copy = world.copy();
        let key: StorageKey = odd.parse().unwrap();
        copy.set(&key, &good);
        refused(&copy, &bytes, &key, "not that of a snapshot");
    }
}

#[test]
fn a_signature_counts_for_its_kind_role_host_and_repository() {
    let (world, bytes) = site();
    let own = &world.host_key.signing;
    // The same host key in another repository, of another root.
    let copy = world.copy();
    let forged = add_header(&copy, own, |h| h["repository"] = json!(World::memory().open().id()));
    refused(&copy, &bytes, &forged, "another repository");
    // Another host's name.
    let copy = world.copy();
    let forged = add_header(&copy, own, |h| h["host"] = json!("web-2"));
    refused(&copy, &bytes, &forged, "may not sign");
    // A key with another role.
    for role in [Role::Prune, Role::Drill] {
        let copy = world.copy();
        copy.vouch(&stranger(), role);
        let forged = add_header(&copy, &stranger(), |_| ());
        refused(&copy, &bytes, &forged, "may not sign");
    }
    // The right key under another namespace, and bytes behind the signature.
    let line = line_of(&world.get(&newest(&world).key)).to_string();
    for namespace in [Namespace::Record, Namespace::Trash, Namespace::Repository, Namespace::Signer, Namespace::Drill] {
        let copy = world.copy();
        let key = newest(&copy).key;
        copy.set(&key, &own.sign(namespace, &line).unwrap());
        let report = copy.verify_as_stranger(OBJECTS).unwrap();
        assert!(about(&report, key.as_str()).problem.contains("signature"), "{report:?}");
    }
    let copy = world.copy();
    let key = newest(&copy).key;
    copy.set(&key, &[copy.get(&key), line.into_bytes()].concat());
    about(&copy.verify_as_stranger(OBJECTS).unwrap(), key.as_str());
}

#[test]
fn every_object_in_place_of_every_other_kind_is_refused() {
    let (world, _) = site();
    world.vouch(&stranger(), Role::Prune);
    let tag = world.record(json!({ "note": "tag", "snapshot": world::id(Sequence(1)), "tag": "v1" }));
    world.put_dated(layout::RECORDS, Namespace::Record, &world.host_key.signing, &tag);
    let trash = json!({ "kind": "trash", "format": 1, "requires": [], "repository": world.open().id(),
                        "time": "2026-11-21T10:00:00Z", "objects": [] });
    world.put_dated(layout::TRASH, Namespace::Trash, &stranger(), &trash);
    let one_of = |prefix: &str| world.keys(prefix).pop().unwrap();
    let prefixes =
        ["repository", "signers/", "archives/", "index/", "refs/", "manifests/", "snapshots/", "records/", "trash/"];
    let kinds: Vec<StorageKey> = prefixes.map(one_of).to_vec();
    assert!(world.verify(DEEP).unwrap().findings.is_empty());
    for place in &kinds {
        for offered in kinds.iter().filter(|k| *k != place) {
            let copy = world.copy();
            copy.set(place, &world.get(offered));
            match copy.verify_as_stranger(READ_DATA) {
                Ok(report) => drop(about(&report, place.as_str())),
                Err(e) => assert!(e.kind() == ErrorKind::Integrity && e.to_string().contains(place.as_str()), "{e:?}"),
            }
        }
    }
}

/// A signer gone bad: headers that name the wrong objects by their true ids.
#[test]
fn signed_headers_cannot_mix_objects() {
    let (world, bytes) = site();
    let own = &world.host_key.signing;
    let first = world.chain().all().next().unwrap().clone();
    let newest = newest(&world);
    let mixed = |edit: &dyn Fn(&World, &mut Value)| {
        let copy = world.copy();
        add_header(&copy, own, |header| edit(&copy, header));
        let snapshot = copy.chain().all().next_back().unwrap().clone();
        let report = copy.verify(DEEP).unwrap();
        (copy.read_source(&snapshot, "files").unwrap_err(), report)
    };
    // The manifest of another snapshot.
    let (error, report) = mixed(&|_, h| h["manifest"] = json!(newest.header.manifest));
    assert!(error.is_integrity() && error.to_string().contains("another snapshot"), "{error}");
    about(&report, layout::manifest(newest.header.manifest).as_str());
    // Any stored object, put where a manifest or refs would lie under its true id.
    for prefix in ["archives/", "index/", "refs/", "manifests/", "snapshots/", "signers/"] {
        let bytes = world.get(&world.keys(prefix)[0]);
        let id = object_id(&bytes);
        let (error, report) = mixed(&|copy, h| {
            copy.set(&layout::manifest(id), &bytes);
            h["manifest"] = json!(id);
            h["manifest_bytes"] = json!(bytes.len());
        });
        assert!(error.is_integrity() && error.object() == Some(&layout::manifest(id)), "{prefix}: {error:?}");
        about(&report, layout::manifest(id).as_str());
        let signed = ["refs/"].contains(&prefix);
        if !signed {
            let copy = world.copy();
            copy.set(&layout::refs(id), &bytes);
            add_header(&copy, own, |h| h["refs"] = json!(id));
            about(&copy.verify_as_stranger(OBJECTS).unwrap(), layout::refs(id).as_str());
        }
    }
    assert!(world.read(&first)[0].1 == bytes);
}

#[test]
fn versions_that_are_not_known_are_refused_and_fields_that_are_not_are_ignored() {
    let (world, _) = site();
    let own = &world.host_key.signing;
    let copy = world.copy();
    add_header(&copy, own, |h| h["colour"] = json!({ "of": ["no", "matter"] }));
    assert_eq!(copy.chain().all().count(), 4);

    let open = |world: &World| -> RepositoryError {
        match world.try_open().and_then(|repository| Chain::load(&repository)) {
            Err(e) => e,
            Ok(chain) => panic!("{:?}", chain.problems),
        }
    };
    type Edit = fn(&mut Value);
    let edits: [(Edit, bool); 2] = [(|o| o["format"] = json!(2), true), (|o| o["requires"] = json!(["wings"]), false)];
    for (edit, newer) in edits {
        let check = |error: &RepositoryError, what: &str| {
            let right = match error {
                RepositoryError::NewerFormat { found: 2, .. } => newer,
                RepositoryError::Requires { requires, .. } => !newer && requires == "wings",
                _ => false,
            };
            assert!(right && error.hint().unwrap().contains("newer version"), "{what}: {error:?}");
        };
        // Even when nothing else of it is as it was.
        let stripped = |object: &mut Value| {
            edit(object);
            let keep = [
                "kind",
                "format",
                "requires",
                "repository",
                "root_public_key",
                "host",
                "policy",
                "sequence",
                "id",
                "time",
            ];
            object.as_object_mut().unwrap().retain(|name, _| keep.contains(&name.as_str()));
        };
        let copy = world.copy();
        add_header(&copy, own, stripped);
        check(&open(&copy), "header");

        let copy = world.copy();
        let mut repository = line_of(&copy.get(&layout::repository()));
        edit(&mut repository);
        copy.set(&layout::repository(), &world.root().sign(Namespace::Repository, &repository.to_string()).unwrap());
        check(&open(&copy), "repository.json");
        repository.as_object_mut().unwrap().remove("created");
        copy.set(&layout::repository(), &world.root().sign(Namespace::Repository, &repository.to_string()).unwrap());
        check(&open(&copy), "repository.json of an unknown shape");

        let copy = world.copy();
        let mut signer = line_of(&copy.get(&layout::signer(1)));
        edit(&mut signer);
        copy.set(&layout::signer(1), &world.root().sign(Namespace::Signer, &signer.to_string()).unwrap());
        check(&open(&copy), "signer");

        let copy = world.copy();
        let mut record = copy.record(json!({ "note": "song", "of": "the future" }));
        edit(&mut record);
        copy.put_dated(layout::RECORDS, Namespace::Record, own, &record);
        check(&open(&copy), "record");

        let copy = world.copy();
        let key = manifest_of(&copy, own, |manifest| stripped(manifest));
        let snapshot = newest(&copy);
        let error = load_manifest(&copy.open(), &snapshot, &copy.identities()).unwrap_err();
        check(&error, key.as_str());

        let copy = world.copy();
        let mut object = index_object(&copy);
        if newer {
            object.format = 2
        } else {
            object.requires = vec!["wings".to_owned()]
        }
        let id = add_index(&copy, &cbor(&object));
        let loader = lifeboat::repository::index::IndexLoader {
            repository: &copy.open(),
            identities: &copy.identities(),
            cache: None,
        };
        check(&loader.load(id, None).unwrap_err(), "index");
        // An index object of which nothing is known but its versions.
        let strange = json!({ "format": object.format, "requires": object.requires, "chunks": "elsewhere" });
        let id = add_index(&copy, &cbor(&strange));
        check(&loader.load(id, None).unwrap_err(), "index of another shape");
    }
}

/// A header by the right key whose manifest is what `edit` makes of the newest one.
fn manifest_of(world: &World, key: &SigningKey, edit: impl FnOnce(&mut Value)) -> StorageKey {
    let snapshot = newest(world);
    let plain = crypt::open(&world.get(&layout::manifest(snapshot.header.manifest)), 1 << 20, &world.identities());
    let mut manifest: Value = serde_json::from_slice(&plain.unwrap()).unwrap();
    let sequence = snapshot.header.sequence.0 + 1;
    manifest["sequence"] = json!(sequence);
    manifest["snapshot"] = json!(world::id(Sequence(sequence)));
    edit(&mut manifest);
    header_with_manifest(
        world,
        key,
        crypt::seal(manifest.to_string().as_bytes(), 3, &world.recipients()).unwrap().bytes(),
    )
}

/// A header by the right key that names these bytes as its manifest.
fn header_with_manifest(world: &World, key: &SigningKey, bytes: &[u8]) -> StorageKey {
    let id = object_id(bytes);
    world.set(&layout::manifest(id), bytes);
    add_header(world, key, |h| {
        h["manifest"] = json!(id);
        h["manifest_bytes"] = json!(bytes.len());
    });
    layout::manifest(id)
}

fn cbor(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// An index object as an attacker who has the recipients can make it: here for the archives that there are.
fn index_object(world: &World) -> IndexObject {
    let archives = world.storage.list(layout::ARCHIVES).unwrap().into_iter().map(|object| IndexArchive {
        id: layout::object_id(&object.key).unwrap(),
        length: object.length,
        header: world.get(&object.key)[..200].to_vec(),
        recipients: world.recipients().set_id(),
    });
    IndexObject {
        format: 1,
        requires: vec![],
        dedup_key: world.host_key.chunk_id_key().dedup_id(),
        codec: "zstd".to_owned(),
        archives: archives.collect(),
        chunks: vec![],
        notes: Notes::default(),
    }
}

fn add_index(world: &World, plain: &[u8]) -> ObjectId {
    let sealed = crypt::seal(plain, 3, &index_recipients(world)).unwrap();
    world.set(&layout::index(sealed.id()), sealed.bytes());
    sealed.id()
}

fn index_recipients(world: &World) -> Recipients {
    world.recipients().with(&world.host_key.host_identity().unwrap().to_public())
}

/// Every chunk of the newest snapshot's first stream.
fn chunk_ids(world: &World) -> Vec<(ChunkId, u64)> {
    let reader = world.reader(&newest(world));
    let tree = &reader.manifest.sources[0].streams[0].ids;
    assert_eq!(tree.depth, 0);
    tree.root.clone()
}

/// Index objects that nobody vouches for are asked by nobody, not even when the true ones are gone.
#[test]
fn a_forged_index_misleads_neither_reader_nor_writer() {
    let (world, bytes) = site();
    let ids = chunk_ids(&world);
    for lose_the_true_ones in [false, true] {
        let copy = World { storage: world.copy().storage, ..world.forgetful() };
        if lose_the_true_ones {
            copy.keys(layout::INDEX).iter().for_each(|key| copy.delete(key));
        }
        // Everything lies at the beginning of some archive, says the forger.
        let mut forged = index_object(&copy);
        forged.chunks = ids.iter().map(|(id, length)| IndexChunk(*id, 0, 0, 500, 512, *length as u32)).collect();
        // And so does what the next snapshot will hold.
        let next = noise(9, 100_000);
        let new_ids = cut(&copy, &next);
        forged.chunks.extend(new_ids.iter().map(|(id, n)| IndexChunk(*id, 0, 0, 500, 512, *n as u32)));
        let id = add_index(&copy, &cbor(&forged));
        for snapshot in copy.chain().all() {
            assert!(copy.read(snapshot)[0].1 == bytes);
        }
        let report = copy.verify(DEEP).unwrap();
        assert!(report.findings.iter().all(|f| f.object != layout::index(id).as_str()), "{:?}", report.findings);
        assert!(report.unreferenced.unwrap().objects > 0);
        let committed = copy.take("shop", &[("files", &[("next", &next)])]).unwrap();
        assert!(committed.header.bytes_new > 100_000, "stored, whatever the forged index says");
        assert!(copy.read(&newest(&copy))[0].1 == next);
    }
}

/// The chunk ids that a host gives to bytes, in a repository of its own.
fn cut(world: &World, bytes: &[u8]) -> Vec<(ChunkId, u64)> {
    let scratch = World { host_key: world.host_key.clone(), ..World::memory() };
    scratch.vouch(&scratch.host_key.signing, Role::Snapshot);
    scratch.snapshot(&[("a", bytes)]);
    chunk_ids(&scratch)
}

/// Index entries count only while their archive is there, whole, not condemned, and sealed to the same recipients.
#[test]
fn a_writer_counts_on_no_archive_that_it_should_not() {
    let (world, bytes) = site();
    let prune = SigningKey::from_seed(&[77; 32]);
    world.vouch(&prune, Role::Prune);
    let archives: Vec<StorageKey> = world.keys(layout::ARCHIVES);
    let trash = |world: &World, key: &SigningKey| {
        let objects: Vec<ObjectId> = archives.iter().map(|key| layout::object_id(key).unwrap()).collect();
        let trash = json!({ "kind": "trash", "format": 1, "requires": [], "repository": world.open().id(),
                            "time": "2026-11-21T10:00:00Z", "objects": objects });
        world.put_dated(layout::TRASH, Namespace::Trash, key, &trash)
    };
    let again = |world: &World| {
        let committed = world.take("shop", &[("files", &[("a", &bytes)])]).unwrap();
        assert!(world.read(&newest(world))[0].1 == bytes);
        committed.header.bytes_new > 600_000
    };
    let fresh = || World { storage: world.copy().storage, ..world.forgetful() };

    let copy = fresh();
    assert!(!again(&copy), "nothing is wrong: nothing is stored again");

    let copy = fresh();
    archives.iter().for_each(|key| copy.delete(key));
    assert!(again(&copy), "archives are gone");

    let copy = fresh();
    archives.iter().for_each(|key| copy.set(key, &copy.get(key)[..300]));
    assert!(again(&copy), "archives are cut short");

    let copy = fresh();
    for key in &archives {
        // Listed as if it were there, and found by no reader.
        let name = key.as_str().rsplit('/').next().unwrap();
        copy.set(&format!("archives/{}/{name}", &name[..1]).parse().unwrap(), &copy.get(key));
        copy.delete(key);
    }
    assert!(again(&copy), "archives lie elsewhere");
    assert!(copy.verify(OBJECTS).unwrap().findings.len() >= archives.len());

    let copy = fresh();
    trash(&copy, &prune);
    assert!(again(&copy), "archives are condemned");

    for key in [&stranger(), &copy.host_key.signing] {
        let copy = fresh();
        let name = trash(&copy, key);
        assert!(!again(&copy), "forged trash condemns nothing");
        about(&copy.verify(OBJECTS).unwrap(), name.as_str());
    }
    // True trash under another name: an old one, played again.
    let copy = fresh();
    let name = trash(&copy, &prune);
    copy.set(&"trash/20270101T000000Z-12345678.json".parse().unwrap(), &copy.get(&name));
    copy.delete(&name);
    assert!(!again(&copy));
    assert_eq!(copy.verify(OBJECTS).unwrap().findings.len(), 1);
    // Trash of any size, or none: nobody is kept from taking a snapshot.
    copy.set(&name, b"");
    copy.set(&"trash/x.json".parse().unwrap(), &vec![b'x'; 65 << 20]);
    assert!(!again(&copy));

    // Another recipient could not open what was sealed to the first alone.
    let copy = fresh();
    let second = age::x25519::Identity::generate();
    let both =
        Recipients::parse(&[copy.identity.first().unwrap().recipient(), second.to_public().to_string()]).unwrap();
    let writer = copy.writer_of(&copy.open(), "shop", both, &Cancel::new()).unwrap();
    let committed = copy.write(writer, &[("files", &[("a", &bytes)])]).unwrap();
    assert!(committed.header.bytes_new > 600_000, "sealed anew");
    // And a repaired index knows to whom: back to one recipient, the archives of both are of no use, the others are.
    copy.keys(layout::INDEX).iter().for_each(|key| copy.delete(key));
    let copy = World { storage: copy.storage.clone(), ..copy.forgetful() };
    let rebuilt = lifeboat::repository::rebuild::rebuild(
        &copy.open(),
        &copy.chain(),
        &copy.identities(),
        &copy.host_key,
        &copy.recipients(),
        &copy.state,
        &Cancel::new(),
    );
    assert!(rebuilt.unwrap().problems.is_empty());
    assert!(!again(&copy));
    let needed = load_refs(&copy.open(), newest(&copy).header.refs).unwrap().archives;
    let of_both = load_refs(&copy.open(), committed.header.refs).unwrap().archives;
    assert!(needed.keys().all(|id| !of_both.contains_key(id)));
}

#[test]
fn forged_signers_refuse_the_repository() {
    let (world, _) = site();
    let other = World::memory();
    let host = &world.host_key.signing;
    let mut object = line_of(&world.get(&layout::signer(1)));
    object["number"] = json!(2);
    object["previous"] = json!(object_id(&world.get(&layout::signer(1))));
    object["public_key"] = json!(stranger().public().to_text().unwrap());
    let sign = |key: &SigningKey| key.sign(Namespace::Signer, &object.to_string()).unwrap();
    for (what, bytes) in [
        ("by another root", sign(&other.root())),
        ("by the host", sign(host)),
        ("by the stranger himself", sign(&stranger())),
        ("as another kind", world.root().sign(Namespace::Repository, &object.to_string()).unwrap()),
        ("garbage", b"garbage".to_vec()),
    ] {
        let copy = world.copy();
        copy.set(&layout::signer(2), &bytes);
        let error = copy.try_open().err().unwrap_or_else(|| panic!("a signer {what} is believed"));
        assert!(error.is_integrity() && error.object() == Some(&layout::signer(2)), "{what}: {error:?}");
    }
    // By the root, it is one: the cases above differ in nothing else.
    world.set(&layout::signer(2), &sign(&world.root()));
    assert_eq!(world.open().signer_count(), 2);
}

/// A stolen host key, revoked: what it signed before still counts, what it signs now does not, and the revocation
/// cannot be hidden.
#[test]
fn a_revoked_key_forges_nothing() {
    let (world, bytes) = site();
    let stolen = &world.host_key.signing;
    let last = newest(&world);
    let new_key = HostKey::create(&world.dir.path().join("new.key"), None).unwrap();
    let last_good = vec![LastGood {
        host: host(),
        policy: "shop".parse().unwrap(),
        sequence: last.header.sequence,
        header: last.header_id,
    }];
    world.add_signer(stolen, SignerAction::Revoke { last_good });
    assert_eq!(world.chain().all().count(), 3, "what it signed before is believed");
    assert!(matches!(world.take("shop", &[]), Err(RepositoryError::NotASigner { .. })));

    // Behind the last good one, in place of it, of a newer version, or garbage: refused, and nobody else is kept out.
    for edit in [
        (|_| ()) as fn(&mut Value),
        |h| h["sequence"] = json!(3),
        |h| h["format"] = json!(2),
        |h| h["requires"] = json!(["wings"]),
        |h| h["signers"] = json!(4_000_000),
        |h| drop(h.as_object_mut().unwrap().remove("manifest")),
    ] {
        let copy = world.copy();
        let forged = add_header(&copy, stolen, edit);
        if copy.chain().all().count() == 3 {
            refused(&copy, &bytes, &forged, "may not sign");
        } else {
            panic!("{forged} is believed");
        }
    }

    // The host goes on with a new key. The thief then removes the revocation: the numbers tell.
    let renewed = World { host_key: Arc::new(new_key), ..world.copy() };
    renewed.vouch(&renewed.host_key.signing, Role::Snapshot);
    renewed.take("shop", &[("files", &[("a", b"four")])]).unwrap();
    assert!(renewed.verify(OBJECTS).unwrap().findings.is_empty());
    let missing = |result: Result<VerifyReport, OpsError>, key: &str| {
        let error = result.unwrap_err();
        assert!(error.kind() == ErrorKind::Integrity && error.to_string().contains(key), "{error}");
    };
    let thief = renewed.copy();
    thief.delete(&layout::signer(2));
    missing(thief.verify_as_stranger(OBJECTS), "signers/2.json");
    // Or everything since then, and has the stolen key sign in place of the new one. Who has seen the signers refuses.
    let thief = World { storage: renewed.copy().storage, ..world.copy() };
    let true_header = newest(&renewed);
    thief.delete(&layout::signer(2));
    thief.delete(&layout::signer(3));
    let forged = add_header(&thief, stolen, |h| h["id"] = json!("20261122T000000Z-12345678"));
    missing(thief.verify(OBJECTS), "signers/2.json");
    // A stranger is told that the true header is by an unknown key.
    let report = thief.verify_as_stranger(OBJECTS).unwrap();
    about(&report, true_header.key.as_str());
    // A header that names the revocation, kept beside its removal: nobody believes anything.
    thief.delete(&forged);
    add_header(&thief, stolen, |h| {
        h["id"] = json!("20261122T000000Z-12345678");
        h["signers"] = json!(2);
    });
    missing(thief.verify_as_stranger(OBJECTS), "signers/2.json");
}

#[test]
fn forged_and_replayed_records_change_nothing() {
    let (world, _) = site();
    let own = &world.host_key.signing;
    let prune = SigningKey::from_seed(&[77; 32]);
    world.vouch(&prune, Role::Prune);
    let chain = world.chain();
    let first = chain.all().next().unwrap();
    // To delete a snapshot and explain it needs a pruner's signature.
    let removed = world.record(json!({ "note": "prune", "removed": [{ "sequence": 1, "header": first.header_id }] }));
    for (key, is_believed) in [(&stranger(), false), (own, false), (&prune, true)] {
        let copy = world.copy();
        copy.delete(&first.key);
        let name = copy.put_dated(layout::RECORDS, Namespace::Record, key, &removed);
        let report = copy.verify(OBJECTS).unwrap();
        if is_believed {
            assert!(report.findings.is_empty(), "{:?}", report.findings);
        } else {
            about(&report, name.as_str());
            about(&report, "snapshots/web-1/shop/0000000001");
        }
    }
    // A record of another host, one of another repository, one under a name that is not its own.
    let hold = |note: &str, time: &str| {
        let mut record = world.record(json!({ "note": note, "snapshot": first.header.id }));
        record["time"] = json!(time);
        record
    };
    for (field, value) in [("host", json!("web-2")), ("repository", json!(World::memory().open().id()))] {
        let copy = world.copy();
        let mut record = hold("hold", "2026-11-21T10:00:00Z");
        record[field] = value;
        let name = copy.put_dated(layout::RECORDS, Namespace::Record, own, &record);
        about(&copy.verify(OBJECTS).unwrap(), name.as_str());
        assert!(copy.chain().all().all(|s| !s.held));
    }
    let released = world.put_dated(layout::RECORDS, Namespace::Record, own, &hold("release", "2026-11-21T10:00:00Z"));
    world.put_dated(layout::RECORDS, Namespace::Record, own, &hold("hold", "2026-11-21T11:00:00Z"));
    assert!(world.chain().all().next().unwrap().held);
    let replayed: StorageKey = "records/20261121T120000Z-12345678.json".parse().unwrap();
    world.set(&replayed, &world.get(&released));
    assert!(world.chain().all().next().unwrap().held, "the release was played again behind the hold");
    about(&world.verify(OBJECTS).unwrap(), replayed.as_str());
    // A time that no key can hold is no reason to fall over.
    world.delete(&replayed);
    let odd = own.sign(Namespace::Record, &hold("hold", "+12345-01-01T00:00:00Z").to_string()).unwrap();
    world.set(&replayed, &odd);
    about(&world.verify(OBJECTS).unwrap(), replayed.as_str());
}

#[test]
fn deleting_the_newest_snapshots_is_noticed_by_whoever_remembers() {
    let (world, bytes) = site();
    let newest = newest(&world);
    world.delete(&newest.key);
    let report = world.verify(OBJECTS).unwrap();
    assert!(about(&report, "snapshots/").problem.contains("rolled back"), "{report:?}");
    // All of them.
    let copy = world.copy();
    copy.keys(layout::SNAPSHOTS).iter().for_each(|key| copy.delete(key));
    assert!(about(&copy.verify(OBJECTS).unwrap(), "snapshots/").problem.contains("none is there"));
    // A stranger cannot know, and is told so; one who was told the newest hash can.
    let access = |expect| {
        let request = AccessRequest { expect, ..AccessRequest::default() };
        Access::of(world.open(), None, None, &request).unwrap()
    };
    assert!(access(None).alarms.is_empty() && access(None).notices[0].contains("cannot be excluded"));
    assert_eq!(access(Some((newest.header.sequence, newest.header_id))).alarms.len(), 1);
    // The next snapshot takes a sequence that was never given, and the gap stays visible.
    let committed = world.take("shop", &[("files", &[("a", &bytes)])]).unwrap();
    assert_eq!(committed.header.sequence, Sequence(4));
    about(&world.verify(OBJECTS).unwrap(), "snapshots/web-1/shop/0000000003");
}

#[test]
fn a_fork_is_found_and_neither_side_is_latest() {
    let (world, bytes) = site();
    // A clone of the host, with its keys, goes on from snapshot 3 as the host itself does.
    world.take("shop", &[("files", &[("a", &bytes), ("b", b"the host's")])]).unwrap();
    let chain = world.chain();
    let all: Vec<&Snapshot> = chain.all().collect();
    add_header(&world, &world.host_key.signing, |h| {
        h["sequence"] = json!(4);
        h["id"] = json!("20261122T000000Z-12345678");
        h["previous"] = json!(all[2].header_id);
    });
    let chain = world.chain();
    let all: Vec<&Snapshot> = chain.all().collect();
    assert_eq!(all.iter().filter(|s| s.forked).count(), 2);
    assert!(matches!(resolve(&all, "latest", None), Err(NameError::Forked { .. })));
    assert_eq!(resolve(&all, "latest~1", None).unwrap().header.sequence, Sequence(2));
    let report = world.verify(OBJECTS).unwrap();
    assert_eq!(report.findings.iter().filter(|f| f.problem.contains("forked")).count(), 2);
    assert!(world.read(all[3])[0].1 == bytes, "both are restorable");
}

#[test]
fn stanzas_that_could_run_something_are_refused() {
    let (world, _) = site();
    let own = &world.host_key.signing;
    let encryptor = age::Encryptor::with_user_passphrase("x".to_owned().into());
    let mut scrypt = Vec::new();
    encryptor.wrap_output(&mut scrypt).unwrap().finish().unwrap();
    let sealed = crypt::seal(b"{}", 3, &world.recipients()).unwrap().bytes().to_vec();
    let at = sealed.windows(4).position(|w| w == b"\n---").unwrap() + 1;
    let plugin = [&sealed[..at], b"-> piv-p256 AAAA BBBB\nAAAA\n", &sealed[at..]].concat();
    for (bytes, tag) in [(scrypt, "scrypt"), (plugin, "piv-p256")] {
        let copy = world.copy();
        header_with_manifest(&copy, own, &bytes);
        let error = load_manifest(&copy.open(), &newest(&copy), &copy.identities()).unwrap_err();
        let text = lifeboat::repository::chain::full_text(&error);
        assert!(error.is_integrity() && text.contains(tag) && text.contains("not allowed"), "{text}");
        copy.set(&layout::index(object_id(&bytes)), &bytes);
        let loader = lifeboat::repository::index::IndexLoader {
            repository: &copy.open(),
            identities: &copy.identities(),
            cache: None,
        };
        assert!(
            lifeboat::repository::chain::full_text(&loader.load(object_id(&bytes), None).unwrap_err()).contains(tag)
        );
        let archive = lifeboat::repository::scan::archive(
            &copy.open(),
            (put_archive(&copy, &bytes), bytes.len() as u64),
            &copy.identities(),
            &[ChunkIdKey::from_bytes([0; 32])],
            &Cancel::new(),
        );
        assert!(lifeboat::repository::chain::full_text(&archive.unwrap().problem.unwrap()).contains(tag));
    }
}

fn put_archive(world: &World, bytes: &[u8]) -> ObjectId {
    world.set(&layout::archive(object_id(bytes)), bytes);
    object_id(bytes)
}

/// What a signer gone bad can write into a manifest: refused before it is followed.
#[test]
fn ids_trees_that_go_nowhere_are_refused() {
    let (world, _) = site();
    let key = world.host_key.chunk_id_key();
    let entry = |id: ChunkId, n: u64| [&id.0[..], &n.to_le_bytes()].concat();
    // Lists that an attacker has stored as chunks of a stream of their own.
    let data = b"data".to_vec();
    let nothing: Vec<u8> = (0..200).flat_map(|_| entry(key.id(&data), 0)).collect();
    let nothings: Vec<u8> = (0..200).flat_map(|_| entry(key.id(&nothing), 0)).collect();
    let wrong: Vec<u8> = (0..3).flat_map(|_| entry(key.id(&data), 5)).collect();
    let huge: Vec<u8> = (0..3).flat_map(|_| entry(key.id(&data), u64::MAX / 2)).collect();
    let cut_short = vec![7; 41];
    let writer = world.writer(&world.open()).unwrap();
    let mut stream = writer.stream("files", "lists", StreamKind::Tar, None);
    for list in [&data, &nothing, &nothings, &wrong, &huge, &cut_short] {
        stream.write_all(list).unwrap();
        stream.end_piece().unwrap();
    }
    let parts = stream.finish().unwrap();
    let lists = StreamEntry {
        name: "lists".parse().unwrap(),
        kind: StreamKind::Raw,
        encoding: Encoding::Plain,
        length: parts.length,
        sha256: None,
        chunk_average: parts.average.bytes(),
        ids: parts.ids,
    };
    let tree = |depth, root: Vec<(ChunkId, u64)>, length| StreamEntry {
        name: "bad".parse().unwrap(),
        length,
        ids: IdsTree { depth, root },
        ..lists.clone()
    };
    let of = |list: &[u8]| key.id(list);
    let cases = vec![
        ("no bytes at all, in 200² steps", tree(2, vec![(of(&nothings), 0)], 0)),
        ("no bytes below a length", tree(2, vec![(of(&nothings), 4)], 4)),
        ("too deep", tree(5, vec![(of(&nothings), 4)], 4)),
        ("deepest", tree(255, vec![(of(&nothings), 4)], 4)),
        ("too many", tree(0, vec![(of(&data), 4); 1025], 4 * 1025)),
        ("another sum", tree(0, vec![(of(&data), 4); 2], 9)),
        ("sums that overflow", tree(0, vec![(of(&data), u64::MAX); 2], u64::MAX - 1)),
        ("another length of a chunk", tree(0, vec![(of(&data), 5)], 5)),
        ("another length in a list", tree(1, vec![(of(&wrong), 15)], 15)),
        ("another sum in a list", tree(1, vec![(of(&wrong), 12)], 12)),
        ("sums that overflow in a list", tree(1, vec![(of(&huge), 12)], 12)),
        ("a list cut short", tree(1, vec![(of(&cut_short), 41)], 41)),
        ("data as a list", tree(1, vec![(of(&data), 4)], 4)),
        ("a chunk of nowhere", tree(0, vec![(ChunkId([9; 32]), 4)], 4)),
        ("a list of nowhere", tree(3, vec![(ChunkId([9; 32]), 4)], 4)),
    ];
    let sources =
        cases.iter().enumerate().map(|(n, (_, bad))| world::source_entry(&format!("s{n}"), vec![bad.clone()]));
    let sources = std::iter::once(world::source_entry("good", vec![lists.clone()])).chain(sources).collect();
    writer.commit(world::draft(Sequence(4), sources), &world.host_key).unwrap();

    let snapshot = newest(&world);
    assert_eq!(world.read_source(&snapshot, "good").unwrap().len() as u64, lists.length);
    for (n, (what, _)) in cases.iter().enumerate() {
        let error = world.read_source(&snapshot, &format!("s{n}")).expect_err(what);
        assert!(error.is_integrity(), "{what}: {error:?}");
    }
    // Offsets are looked for by the same lengths.
    let reader = world.reader(&snapshot);
    for source in reader.manifest.sources.iter().skip(1) {
        let stream = &source.streams[0];
        let end = stream.length;
        assert!(
            reader.stream(source, stream, end).is_err() || end == 0 || reader.stream(source, stream, end - 1).is_err()
        );
    }
    let report = world.verify(DEEP).unwrap();
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!(finding.object, layout::manifest(snapshot.header.manifest).as_str());
    let named: Vec<&str> = finding.sources.iter().map(|s| s.as_str()).collect();
    let mut expected: Vec<String> = (0..cases.len()).map(|n| format!("s{n}")).collect();
    expected.sort();
    assert_eq!(named, expected);
}

#[test]
fn manifests_that_name_things_twice_are_refused() {
    let (world, _) = site();
    let own = &world.host_key.signing;
    for twice in ["/sources", "/sources/0/streams"] {
        let copy = world.copy();
        let key = manifest_of(&copy, own, |manifest| {
            let list = manifest.pointer_mut(twice).unwrap().as_array_mut().unwrap();
            list.push(list[0].clone());
        });
        let error = load_manifest(&copy.open(), &newest(&copy), &copy.identities()).unwrap_err();
        assert!(error.object() == Some(&key) && error.to_string().contains("twice"), "{error}");
    }
}

#[test]
fn lengths_and_counts_beyond_all_bounds_are_refused() {
    let (world, _) = site();
    let own = &world.host_key.signing;
    // Lengths that no sum can hold.
    let refs: String = (1..4u8).map(|n| format!("archive {} {}\n", ObjectId([n; 32]), u64::MAX)).collect();
    let copy = world.copy();
    let id = object_id(refs.as_bytes());
    copy.set(&layout::refs(id), refs.as_bytes());
    add_header(&copy, own, |h| {
        h["refs"] = json!(id);
        h["manifest_bytes"] = json!(u64::MAX);
        h["bytes_total"] = json!(u64::MAX);
        h["bytes_new"] = json!(u64::MAX);
    });
    for level in [OBJECTS, READ_DATA, DEEP] {
        assert_eq!(copy.verify(level).unwrap().findings.len(), 4);
    }
    // An index object of the right bytes that makes no sense.
    let copy = world.copy();
    let mut object = index_object(&copy);
    let good = object.archives[0].clone();
    object.archives.push(IndexArchive { length: u64::MAX, ..good.clone() });
    object.archives.push(IndexArchive { header: vec![0; 100_000], ..good.clone() });
    object.archives.push(IndexArchive { header: vec![], length: 0, ..good.clone() });
    let most = u32::MAX;
    for (n, id) in chunk_ids(&copy).iter().enumerate() {
        let n = n as u32;
        let wild =
            [[most, 0, 1, 0, 1], [0, most, most, most, most], [n % 4, 0, most, 0, 5], [n % 4, 7, 64 << 20, 1, 1]];
        let [archive, frame, frame_length, offset, length] = wild[n as usize % 4];
        object.chunks.push(IndexChunk(id.0, archive, frame, frame_length, offset, length));
    }
    let index = add_index(&copy, &cbor(&object));
    let before = newest(&copy);
    let refs = load_refs(&copy.open(), before.header.refs).unwrap();
    let index_length = copy.get(&layout::index(index)).len();
    let archives = refs.archives.iter().map(|(id, n)| format!("archive {id} {n}\n")).collect::<String>();
    let text = format!("{archives}index {index} {index_length}\n");
    copy.set(&layout::refs(object_id(text.as_bytes())), text.as_bytes());
    // The same manifest, for the sake of whose ids the index is asked.
    let key = manifest_of(&copy, own, |_| ());
    let header = newest(&copy).key;
    let mut line = line_of(&copy.get(&header));
    line["refs"] = json!(object_id(text.as_bytes()));
    copy.set(&header, &own.sign(Namespace::Snapshot, &line.to_string()).unwrap());
    let snapshot = newest(&copy);
    assert_eq!(layout::manifest(snapshot.header.manifest), key);
    match copy.read_source(&snapshot, "files") {
        Ok(_) => {}
        Err(e) => assert!(e.is_integrity(), "{e:?}"),
    }
    about(&copy.verify(DEEP).unwrap(), layout::index(index).as_str());
    // A writer who finds it in its own refs is not misled either.
    let next = World { storage: copy.storage.clone(), ..copy.forgetful() };
    next.take("shop", &[("files", &[("a", &noise(1, 600_000))])]).unwrap();
    assert!(next.read(&newest(&next))[0].1 == noise(1, 600_000));
}

#[test]
fn a_signer_who_skips_a_billion_sequences_makes_one_problem() {
    let (world, _) = site();
    add_header(&world, &world.host_key.signing, |h| {
        h["sequence"] = json!(9_999_999_999u64);
        h["id"] = json!("20261122T000000Z-12345678");
    });
    let report = world.verify_as_stranger(OBJECTS).unwrap();
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert!(about(&report, "snapshots/web-1/shop/0000000004").problem.contains("4 to 9999999998"));
    // There is no sequence behind the last: said, and nothing written that could not be read.
    let before = world.keys(layout::SNAPSHOTS).len();
    let error = world.take("shop", &[("files", &[("a", b"more")])]).unwrap_err();
    assert!(error.is_integrity() && error.to_string().contains("no sequence is left"), "{error}");
    assert_eq!(world.keys(layout::SNAPSHOTS).len(), before);
}

/// Bombs, in a process of its own whose memory is looked at: a manifest and an index object of 10 GiB in a megabyte, and an
/// archive with such a frame.
#[test]
fn bombs_stay_small() {
    if std::env::var_os("LIFEBOAT_TEST_BOMBS").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bombs_stay_small", "--nocapture"])
            .env("LIFEBOAT_TEST_BOMBS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let (world, _) = site();
    let own = &world.host_key.signing;
    // One frame without a length in its header: blocks of 128 KiB that are one byte, repeated.
    let frame = |byte: u8, blocks: u32| {
        let block = |last: u32| [&((128 << 10) << 3 | 1 << 1 | last).to_le_bytes()[..3], &[byte]].concat();
        let mut frame = b"\x28\xb5\x2f\xfd\x00\x58".to_vec();
        (1..blocks).for_each(|_| frame.extend(block(0)));
        frame.extend(block(1));
        frame
    };
    assert_eq!(zstd::stream::decode_all(&frame(b'x', 3)[..]).unwrap(), vec![b'x'; 3 * (128 << 10)]);
    let zeros = frame(0, 10 << 13);
    let seal = |plain: &[u8]| {
        let age = age::Encryptor::with_recipients(std::iter::once(&recipient(&world) as &dyn age::Recipient)).unwrap();
        let mut bytes = Vec::new();
        let mut writer = age.wrap_output(&mut bytes).unwrap();
        writer.write_all(plain).unwrap();
        writer.finish().unwrap();
        bytes
    };
    // Zeros, blanks without end before a value, and arrays in arrays.
    let mut bomb = Vec::new();
    for byte in [b' ', b'[', 0] {
        bomb = seal(&frame(byte, 10 << 13));
        assert!(bomb.len() < 400_000, "{}", bomb.len());
        header_with_manifest(&world, own, &bomb);
        let error = load_manifest(&world.open(), &newest(&world), &world.identities()).unwrap_err();
        assert!(error.is_integrity(), "{error:?}");
    }
    world.set(&layout::index(object_id(&bomb)), &bomb);
    let loader = lifeboat::repository::index::IndexLoader {
        repository: &world.open(),
        identities: &world.identities(),
        cache: None,
    };
    assert!(loader.load(object_id(&bomb), None).unwrap_err().is_integrity());
    // An archive whose one frame claims, and holds, 1 GiB; and one whose window would be 2 GiB.
    for plain in [&zeros[..], b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"] {
        let bytes = seal(plain);
        let id = put_archive(&world, &bytes);
        let keys = [ChunkIdKey::from_bytes([0; 32])];
        let scanned = lifeboat::repository::scan::archive(
            &world.open(),
            (id, bytes.len() as u64),
            &world.identities(),
            &keys,
            &Cancel::new(),
        );
        assert!(scanned.unwrap().problem.unwrap().is_integrity());
    }
    println!("before refs: {} KiB", peak_kib());
    assert!(peak_kib() < 256 << 10, "{} KiB", peak_kib());
}

/// A long stream; one with a few bytes out of each of many frames; and streams of single bytes that a few lists make up, in
/// one frame and in two by turns: what is read ahead of whoever takes his time has bounds. In a process of its own.
#[test]
fn what_is_read_ahead_stays_small_however_a_stream_is_cut() {
    if std::env::var_os("LIFEBOAT_TEST_AHEAD").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_is_read_ahead_stays_small_however_a_stream_is_cut", "--nocapture"])
            .env("LIFEBOAT_TEST_AHEAD", "1")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
        return;
    }
    const FRAMES: usize = 150;
    let world = World::memory();
    let key = world.host_key.chunk_id_key();
    let writer = world.writer(&world.open()).unwrap();
    let mut stream = writer.stream("files", "long", StreamKind::Tar, None);
    let mut chunk = |bytes: &[u8]| {
        stream.write_all(bytes).unwrap();
        stream.end_chunk().unwrap();
        (key.id(bytes), bytes.len() as u64)
    };
    let letters: Vec<u8> = noise(1, 4096).iter().map(|b| b'a' + b % 16).collect();
    let mut text = letters.repeat(244);
    let (a, mut few) = (chunk(b"a"), Vec::new());
    for n in 0..FRAMES {
        for (at, page) in text.chunks_mut(4096).enumerate() {
            page[..8].copy_from_slice(format!("{n:04}{at:04}").as_bytes());
        }
        chunk(&text);
        few.push(chunk(format!("few {n:04}").as_bytes()));
    }
    let b = chunk(b"b");
    // Three lists deep, each too short to be cut.
    let mut millions = |mut two: [(ChunkId, u64); 2]| {
        for _ in 0..3 {
            let list = two.map(|(id, n)| [&id.0[..], &n.to_le_bytes()].concat()).concat().repeat(100);
            two = [(chunk(&list).0, two[0].1 * 200); 2];
        }
        vec![two[0]; 3]
    };
    let (alike, turns) = (millions([a, a]), millions([a, b]));
    let long = world::stream_entry("long", stream.finish().unwrap());
    let tree = |name: &str, depth, root: Vec<(ChunkId, u64)>| StreamEntry {
        name: name.parse().unwrap(),
        length: root.iter().map(|(_, n)| n).sum(),
        sha256: None,
        ids: IdsTree { depth, root },
        ..long.clone()
    };
    let entries = vec![long.clone(), tree("few", 0, few), tree("alike", 3, alike), tree("turns", 3, turns)];
    let draft = world::draft(writer.sequence(), vec![world::source_entry("files", entries)]);
    writer.commit(draft, &world.host_key).unwrap();
    let before = peak_kib();
    let reader = world.reader(&newest(&world));
    let source = &reader.manifest.sources[0];
    for stream in &source.streams {
        let mut bytes = reader.stream(source, stream, 0).unwrap();
        let mut some = [0; 1000];
        bytes.read_exact(&mut some).unwrap();
        // What can come meanwhile has come.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        println!("{}: {} KiB, before {before} KiB", stream.name, peak_kib());
        assert!(peak_kib() < before.max(64 << 10) + (64 << 10), "{}: {} KiB, {before}", stream.name, peak_kib());
        let expected = match stream.name.as_str() {
            "long" => [b"a00000000", &text[8..999]].concat(),
            "few" => (0..125).flat_map(|n| format!("few {n:04}").into_bytes()).collect(),
            "alike" => vec![b'a'; 1000],
            _ => b"ab".repeat(500),
        };
        assert_eq!(String::from_utf8_lossy(&some), String::from_utf8_lossy(&expected), "{}", stream.name);
    }
}

fn recipient(world: &World) -> age::x25519::Recipient {
    world.identity.first().unwrap().recipient().parse().unwrap()
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn refs_of_a_million_lines_are_too_many_and_a_hundred_thousand_are_checked() {
    let (world, _) = site();
    let with_refs = |refs: &[u8]| {
        let copy = world.copy();
        let id = object_id(refs);
        copy.set(&layout::refs(id), refs);
        add_header(&copy, &world.host_key.signing, |h| h["refs"] = json!(id));
        (copy.verify_as_stranger(OBJECTS).unwrap(), layout::refs(id))
    };
    let line = format!("archive {} 16777216\n", ObjectId([1; 32]));
    let (report, key) = with_refs(line.repeat(1_000_000).as_bytes());
    let finding = about(&report, key.as_str());
    assert!(finding.problem.contains("at most"), "{finding:?}");
    let mut ids: Vec<ObjectId> = (0..100_000u32).map(|n| object_id(&n.to_le_bytes())).collect();
    ids.sort_unstable();
    let lines: String = ids.iter().map(|id| format!("archive {id} 16777216\n")).collect();
    let (report, _) = with_refs(lines.as_bytes());
    assert_eq!((report.findings.len(), report.more_findings), (10_000, 90_000), "named up to a limit");
}

/// A dedup key id or recipient set that is not this writer's: its entries are of no use, and no harm.
#[test]
fn an_index_of_another_key_or_recipient_is_passed_over() {
    let (world, bytes) = site();
    let strip = |edit: &dyn Fn(&mut IndexObject)| {
        let copy = World { storage: world.copy().storage, ..world.forgetful() };
        let refs = load_refs(&copy.open(), newest(&copy).header.refs).unwrap();
        let loader = lifeboat::repository::index::IndexLoader {
            repository: &copy.open(),
            identities: &copy.identities(),
            cache: None,
        };
        let mut text = refs.archives.iter().map(|(id, n)| format!("archive {id} {n}\n")).collect::<String>();
        let mut lines = Vec::new();
        for (id, length) in &refs.index {
            let mut object = loader.load(*id, Some(*length)).unwrap();
            edit(&mut object);
            let new = add_index(&copy, &cbor(&object));
            lines.push(format!("index {new} {}\n", copy.get(&layout::index(new)).len()));
        }
        lines.sort();
        text.extend(lines);
        copy.set(&layout::refs(object_id(text.as_bytes())), text.as_bytes());
        // Only this header is there, so only its index objects are known.
        let key = newest(&copy).key;
        let mut line = line_of(&copy.get(&key));
        line["refs"] = json!(object_id(text.as_bytes()));
        copy.keys(layout::SNAPSHOTS).iter().for_each(|key| copy.delete(key));
        copy.set(&key, &copy.host_key.signing.sign(Namespace::Snapshot, &line.to_string()).unwrap());
        copy.take("shop", &[("files", &[("a", &bytes)])]).unwrap().header.bytes_new > 600_000
    };
    assert!(!strip(&|_| ()));
    assert!(strip(&|object| object.dedup_key = DedupKeyId([1; 32])));
    assert!(strip(&|object| object.archives.iter_mut().for_each(|a| a.recipients = RecipientSetId([1; 32]))));
    assert!(strip(&|object| object.archives.iter_mut().for_each(|a| a.length += 1)));
}

/// Whoever verifies without an identity is told nothing that needs one.
#[test]
fn a_deep_look_needs_the_identity() {
    let (world, _) = site();
    assert!(matches!(
        lifeboat::ops::verify::verify(&world.access(false).unwrap(), DEEP, &[], &world::run()),
        Err(OpsError::NoIdentity { .. })
    ));
}
