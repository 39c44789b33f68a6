//! Where the throw-away server runs: the live container's image, this host; and that nothing of it stays.

use crate::bench::{Setup, capture, capture_as, green, not_passed, shop, spec};
use crate::docker::{IMAGE, TestContainer, docker, engine, try_docker};
use crate::taken::Taken;
use lifeboat::place::ContainerPlace;
use lifeboat::place::account::Account;
use lifeboat::policy::model::{DrillPostgres, Target};
use lifeboat::sources::SourceError;
use lifeboat::sources::locate::{Locate, Located};
use lifeboat::sources::postgres::{Limits, PostgresSource, sweep_local};
use lifeboat::sources::proof::Verdict;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A server in a container that asks everybody for a password, and publishes no port.
fn in_container() -> TestContainer {
    engine();
    let script = "B=/usr/lib/postgresql/15/bin; D=/var/lib/postgresql/d; printf 's3cret' >/tmp/pw; chmod 644 /tmp/pw; \
        mkdir -p /var/run/postgresql /var/lib/postgresql; chown 70:70 /var/run/postgresql /var/lib/postgresql; \
        as() { setpriv --reuid=70 --regid=70 --clear-groups \"$@\"; }; \
        as $B/initdb -N -A scram-sha-256 -U keeper --pwfile=/tmp/pw -E UTF8 --locale=C.UTF-8 -D $D >/dev/null; \
        exec setpriv --reuid=70 --regid=70 --clear-groups $B/postgres -D $D -F -c listen_addresses='' \
          -c unix_socket_directories=/var/run/postgresql -c dynamic_shared_memory_type=posix";
    let options =
        ["-e", "POSTGRES_USER=keeper", "-e", "POSTGRES_PASSWORD=s3cret", "-e", "POSTGRES_DB=shop", "--network", "none"];
    let container = TestContainer::run(&options, IMAGE, &["bash", "-ec", script]);
    let begin = Instant::now();
    while !try_docker(["exec", &container.id, "pg_isready", "-q", "-h", "/var/run/postgresql"]).status.success() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", try_docker(["logs", &container.id]));
        std::thread::sleep(Duration::from_millis(100));
    }
    sql(&container, "postgres", "CREATE ROLE shop LOGIN");
    sql(&container, "postgres", "CREATE DATABASE shop OWNER shop");
    sql(
        &container,
        "shop",
        "CREATE EXTENSION pg_trgm; SET ROLE shop; CREATE TABLE items (id serial PRIMARY KEY, t text); \
         INSERT INTO items (t) SELECT md5(i::text) || repeat('x', 200) FROM generate_series(1, 20000) AS i; CREATE INDEX ON items (t)",
    );
    container
}

fn sql(container: &TestContainer, database: &str, sql: &str) -> String {
    let connection = format!("host=/var/run/postgresql user=keeper password=s3cret dbname={database}");
    docker(["exec", "-i", &container.id, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &connection, "-c", sql])
}

fn captured(container: &TestContainer) -> Taken {
    let engine = engine();
    let locate: Locate = Arc::new(move |target| {
        let Target::Container(name) = target else { panic!("{target:?}") };
        let place = ContainerPlace::named(&engine, name.clone());
        let env = place.resolve()?.env.into_iter().collect();
        Ok(Located { place: Arc::new(place), env })
    });
    let spec = spec(Target::Container(container.name.clone()));
    Taken::of(&PostgresSource::new("db".parse().unwrap(), spec, Duration::from_secs(120), locate))
}

/// Memory of this host that servers of drills have begun to share since then and that none of them uses any more; it would
/// stay until the host is started anew. (What a server of another account shares is not theirs, nor what a living one does: other
/// tests have some. One that is ending gets the time to tidy up.)
pub fn shared_memory_since(begin: SystemTime) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let found = left_over(begin);
        if found.is_empty() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn left_over(begin: SystemTime) -> Vec<String> {
    let nobody = Account::find("nobody").expect("the account nobody").uid;
    let begin = begin.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/dev/shm").unwrap().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        let is_new = meta.uid() == nobody && meta.ctime() as u64 > begin;
        if is_new && is_control(&entry.path()) && !is_mapped(&entry.path()) {
            found.push(entry.path().display().to_string());
        }
    }
    // key, id, mode, size, two processes, attached, owner, group, creator, its group, three times.
    for line in std::fs::read_to_string("/proc/sysvipc/shm").unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |n: usize| fields[n].parse::<u64>().unwrap();
        let is_new = number(7) == u64::from(nobody) && number(13) > begin;
        if is_new && !Path::new("/proc").join(fields[4]).exists() {
            found.push(line.to_owned());
        }
    }
    found
}

/// The segment of a server that names its others: it is mapped for as long as the server lives, the others only now and then.
fn is_control(file: &Path) -> bool {
    const MAGIC: [u8; 4] = 0x9a50_3d32_u32.to_le_bytes();
    let mut first = [0; 4];
    std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == MAGIC
}

fn is_mapped(file: &Path) -> bool {
    let file = file.to_str().unwrap();
    let maps = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("maps"));
    maps.filter_map(|maps| std::fs::read_to_string(maps).ok()).any(|maps| maps.contains(file))
}

/// Containers of drills that this process of the host started.
fn drills(pid: u32) -> Vec<String> {
    let format = "{{.ID}} {{.Label \"lifeboat.owner\"}}";
    let listed = docker(["ps", "-a", "--filter", "label=lifeboat.role=drill", "--format", format]);
    let own = |line: &&str| line.contains(&format!("/{pid}/"));
    listed.lines().filter(own).filter_map(|l| l.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_live_containers_image_without_its_network_or_anything_of_its_own() {
    let container = in_container();
    let taken = captured(&container);
    let setup = || Setup::with(DrillPostgres::Auto).source(spec(Target::Container(container.name.clone())));
    // Where control groups have it: of version 2, and of version 1.
    let limits = ["memory.max", "memory/memory.limit_in_bytes"]
        .map(|file| format!("pg_read_file('/sys/fs/cgroup/{file}', 0, 64, true)"));
    let proof = setup()
        .check("SELECT pg_read_file('/proc/self/status') ~ 'Uid:\\s+70\\s+70'", None)
        .check("SELECT pg_read_file('/proc/self/status') ~ 'CapEff:\\s+0000000000000000'", None)
        .check("SELECT pg_read_file('/proc/net/dev') !~ 'eth0'", None)
        .check("SELECT current_setting('data_directory') LIKE '/lifeboat/%'", None)
        .check(&format!("SELECT coalesce({})::bigint = 512 * 1024 * 1024", limits.join(", ")), None)
        .prove(&taken);
    green(&proof);
    assert_eq!(proof.restored, ["1 table (20,000 rows)"]);
    // Stopped, it still has its image.
    docker(["stop", "-t", "1", &container.id]);
    green(&setup().prove(&taken));
    // Changed meanwhile: the other container's server was never asked.
    let mut lost = taken.clone();
    lost.facts["databases"][0]["tables"][0]["rows"] = 19_999.into();
    assert!(not_passed(&setup().prove(&lost))[0].contains("public.items"));
    // Without it there are this host's own programs.
    docker(["rm", "-f", &container.id]);
    green(&setup().prove(&taken));
    let mut image_only = setup();
    image_only.drill.postgres = DrillPostgres::Image;
    let proof = image_only.prove(&taken);
    assert_eq!(proof.checks.len(), 1);
    assert_eq!(proof.checks[0].verdict, Verdict::Failed);
    assert!(proof.checks[0].why.as_ref().unwrap().contains("is not there"), "{proof:?}");
    assert_eq!(drills(std::process::id()), Vec::<String>::new());
}

#[test]
fn another_major_version_is_not_good_enough() {
    let server = shop();
    let mut taken = capture(&server, &["shop"]);
    taken.facts["server_version_num"] = 99_000.into();
    for postgres in
        [DrillPostgres::Local, DrillPostgres::Auto, DrillPostgres::Server(server.socket_url("postgres", "postgres"))]
    {
        let proof = Setup::with(postgres).prove(&taken);
        assert_eq!((proof.checks.len(), proof.checks[0].verdict), (1, Verdict::Failed), "{proof:?}");
        assert!(proof.checks[0].why.as_ref().unwrap().contains("PostgreSQL 9"), "{proof:?}");
    }
}

#[test]
fn cancelled_it_ends_within_seconds_and_leaves_nothing() {
    let server = shop();
    let taken = capture(&server, &["shop"]);
    // However fast the machine is, it is at work then.
    let setup = Setup::local().check("select pg_sleep(300) is null", None);
    let cancel = setup.cancel.clone();
    let (result, took) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| setup.try_prove(&taken));
        std::thread::sleep(Duration::from_millis(1500));
        cancel.raise(15);
        let begin = Instant::now();
        (thread.join().unwrap(), begin.elapsed())
    });
    assert!(matches!(result, Err(SourceError::Cancelled(_))), "{result:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// A proof that goes on until somebody kills it: run by [`a_killed_drill_is_swept_by_the_next`] in a process of its own.
#[test]
#[ignore = "a part of another test"]
fn child_that_is_killed() {
    let Some(scratch) = std::env::var_os("LIFEBOAT_TEST_SCRATCH") else { return };
    let (taken, setup) = match std::env::var("LIFEBOAT_TEST_CONTAINER") {
        Ok(name) => {
            let container = std::mem::ManuallyDrop::new(TestContainer { id: name.clone(), name });
            let spec = spec(Target::Container(container.name.clone()));
            (captured(&container), Setup::with(DrillPostgres::Image).source(spec))
        }
        Err(_) => {
            let url = std::env::var("LIFEBOAT_TEST_URL").unwrap();
            (capture_as(spec(Target::Url(url)), Limits::default()), Setup::local())
        }
    };
    let setup = setup.check("select pg_sleep(300) is null", None);
    let _ = setup.prove_in(&taken, PathBuf::from(scratch).as_path());
}

fn killed(scratch: &std::path::Path, (variable, live): (&str, &str), reached: &dyn Fn(u32) -> bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "places::child_that_is_killed", "--ignored", "--nocapture"]);
    command.env("LIFEBOAT_TEST_SCRATCH", scratch).env(variable, live);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let begin = Instant::now();
    while !reached(child.id()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "the drill does not begin");
        assert!(child.try_wait().unwrap().is_none(), "the drill ended by itself");
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_drill_is_swept_by_the_next() {
    let base = tempfile::Builder::new().prefix("lb-").tempdir().unwrap();
    let scratch = base.path().join("drill-1");
    std::fs::create_dir(&scratch).unwrap();
    let mark = scratch.join("postgres-drill.json");
    let folder = || -> Option<PathBuf> {
        let mark: serde_json::Value = serde_json::from_slice(&std::fs::read(&mark).ok()?).ok()?;
        mark["server"].as_str()?;
        Some(mark["folder"].as_str()?.into())
    };
    let (live, begin) = (shop(), SystemTime::now());
    let url = live.socket_url("postgres", "shop");
    killed(&scratch, ("LIFEBOAT_TEST_URL", &url), &|_| {
        folder().is_some_and(|f| f.join("data/postmaster.pid").exists())
    });
    let folder = folder().unwrap();
    let data = folder.join("data");
    let serving = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|p| {
                let line = std::fs::read(p.path().join("cmdline")).unwrap_or_default();
                line.split(|b| *b == 0).any(|a| a == data.as_os_str().as_encoded_bytes())
            })
            .count()
    };
    assert!(serving() > 0 && folder.exists(), "it outlives the process that started it");
    assert_eq!(sweep_local(base.path()), std::slice::from_ref(&folder));
    assert_eq!(serving(), 0);
    assert!(!folder.exists() && !mark.exists());
    assert_eq!(shared_memory_since(begin), Vec::<String>::new());
    assert_eq!(sweep_local(base.path()), Vec::<PathBuf>::new());
    assert_eq!(live.sql("shop", "SELECT count(*) FROM users"), "1000");
}

#[test]
fn a_killed_drill_in_a_container_is_swept_by_the_next() {
    let container = in_container();
    let base = tempfile::Builder::new().prefix("lb-").tempdir().unwrap();
    let left = std::cell::RefCell::new(Vec::new());
    killed(base.path(), ("LIFEBOAT_TEST_CONTAINER", &container.name), &|pid| {
        *left.borrow_mut() = drills(pid);
        !left.borrow().is_empty()
    });
    let left = left.into_inner();
    assert_eq!(left.len(), 1);
    // Another test's sweep may be faster.
    let volume = try_docker(["inspect", "-f", "{{range .Mounts}}{{.Name}}{{end}}", &left[0]]);
    let volume = String::from_utf8(volume.stdout).unwrap().trim().to_owned();
    engine().sweep(chrono::Utc::now()).unwrap();
    assert!(!try_docker(["inspect", &left[0]]).status.success());
    assert!(
        volume.is_empty() || !try_docker(["volume", "inspect", &volume]).status.success(),
        "its volume went with it"
    );
}
