//! Files of today that leave.

use crate::bench::{Bench, everything, write};
use lifeboat::ops::rollback::losses;
use lifeboat::sources::placing::Part;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn overwritten_files_leave_and_newer_ones_only_where_the_tree_becomes_exact() {
    let bench = Bench::new(
        "[[source]]\nkind = \"files\"\nname = \"uploads\"\npaths = [\"ROOT/uploads\"]\n\
         [[source]]\nkind = \"env\"\nname = \"env\"\npaths = [\"ROOT/.env\"]\n",
    );
    let uploads = bench.app().join("uploads");
    for i in 0..20 {
        write(&uploads.join(format!("{i}.jpg")), "picture");
    }
    write(&bench.app().join(".env"), "A=1\n");
    let (taken, env) = (bench.capture("uploads"), bench.capture("env"));
    let said = |part: &Part| losses::told(&[bench.plan(&taken, part)]);
    let exact = Part { exact: true, ..Part::default() };
    assert!(said(&exact).starts_with("nothing that is counted"));
    std::thread::sleep(std::time::Duration::from_millis(20));
    write(&uploads.join("0.jpg"), "another");
    write(&uploads.join("1.jpg"), "longer than it was");
    fs::remove_file(uploads.join("2.jpg")).unwrap();
    fs::set_permissions(uploads.join("3.jpg"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(uploads.join("4.jpg")).unwrap();
    std::os::unix::fs::symlink("0.jpg", uploads.join("4.jpg")).unwrap();
    for i in 0..5 {
        write(&uploads.join(format!("new/-x $(id) {i}.jpg")), "newer");
    }
    assert_eq!(said(&everything()), "uploads: 3 files");
    assert_eq!(said(&exact), "uploads: 8 files");
    // What an administrator writes is told by its own rules.
    write(&bench.app().join(".env"), "A=2222\n");
    assert_eq!(bench.plan(&env, &everything()).losses, []);
    let flush = Part { flush: true, ..Part::default() };
    assert!(bench.try_plan(&taken, &flush).is_err());
}
