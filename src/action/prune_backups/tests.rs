//! Which backups go, and that nothing else does.

use serde_json::json;

use super::super::backup::manifest::{Manifest, Source, Verified};
use super::super::testing::{World, action};
use super::*;

/// Makes a backup so many days old, proven so far.
fn backup(world: &World, name: &str, days: i64, proven: Option<Level>) {
    let path = world.context.directory.join("backups").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, name).unwrap();
    fs::write(beside(&path, CHECKSUM), "").unwrap();
    let manifest = Manifest {
        version: 1,
        file: name.into(),
        size: 10,
        sha256: format!("sum of {name}"),
        step: name.split('_').next().unwrap().into(),
        created_at: world.context.clock.now() - jiff::SignedDuration::from_hours(24 * days),
        source: Source { database: "app".into(), ..Source::default() },
        ..Manifest::default()
    };
    manifest.write(&path).unwrap();
    if let Some(level) = proven {
        let verified = Verified {
            version: 1,
            sha256: manifest.sha256,
            level,
            verified_at: world.context.clock.now(),
            run: "r".into(),
            step: "s".into(),
            restore_seconds: None,
        };
        verified.write(&path).unwrap();
    }
}

fn names(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.context.directory.join("backups")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn prune(world: &World, rules: &str) -> StepResult {
    action::<PruneBackups>(&format!("{{dir: backups, {rules}}}")).run(&world.context).await.unwrap()
}

fn table(result: &StepResult) -> String {
    let cell = |row: &Vec<Value>, index: usize| row[index].as_str().unwrap().to_owned();
    result.rows.iter().map(|row| format!("{}: {}\n", cell(row, 0), cell(row, 4))).collect()
}

#[tokio::test]
async fn old_backups_go_when_newer_ones_are_proven() {
    let world = World::new(&json!({}), &[]);
    for days in [0, 3, 8, 9, 10, 11] {
        backup(&world, &format!("full_{days:02}"), days, Some(Level::Restore));
    }
    fs::write(world.context.directory.join("backups/notes.txt"), "").unwrap();
    let rules = "keep_days: 7, minimum_redundancy: 3";
    let told = prune(&world, &format!("{rules}, dry_run: true")).await;
    assert_eq!(told.summary, "3 backups would go, 30 B; 3 stay");
    assert!(names(&world).contains(&"full_11".to_owned()), "nothing has gone");
    let done = prune(&world, rules).await;
    assert_eq!(done.summary, "3 backups removed, 30 B; 3 stay");
    insta::assert_snapshot!(table(&done), @r"
    full_00: stays: young enough
    full_03: stays: young enough
    full_08: stays: one of the proven ones that must
    full_09: removed
    full_10: removed
    full_11: removed
    ");
    let left = ["full_00", "full_03", "full_08"].map(|name| ["", CHECKSUM, MANIFEST, VERIFIED].map(|ending| format!("{name}{ending}")));
    let mut left: Vec<String> = left.concat();
    left.push("notes.txt".into());
    left.sort();
    assert_eq!(names(&world), left);
    assert_eq!(prune(&world, rules).await.value, Some(json!(0)));
}

#[tokio::test]
async fn without_a_newer_proven_one_nothing_goes() {
    let world = World::new(&json!({}), &[]);
    for days in [0, 20, 30, 40] {
        backup(&world, &format!("full_{days}"), days, None);
    }
    backup(&world, "full_50", 50, Some(Level::Restore));
    insta::assert_snapshot!(table(&prune(&world, "keep_days: 7").await), @r"
    full_0: stays: young enough
    full_20: stays: no newer one is proven
    full_30: stays: no newer one is proven
    full_40: stays: no newer one is proven
    full_50: stays: no newer one is proven
    ");
    backup(&world, "full_0", 0, Some(Level::Checksum));
    assert_eq!(prune(&world, "keep_days: 7, minimum_redundancy: 1").await.value, Some(json!(0)), "a checksum proves too little");
    backup(&world, "full_0", 0, Some(Level::Archive));
    assert_eq!(prune(&world, "keep_days: 7, minimum_redundancy: 1, proven: restore").await.value, Some(json!(0)));
    insta::assert_snapshot!(table(&prune(&world, "keep_days: 7, keep_last: 2").await), @r"
    full_0: stays: young enough
    full_20: stays: one of the newest
    full_30: stays: too few newer ones are proven
    full_40: stays: too few newer ones are proven
    full_50: stays: one of the proven ones that must
    ");
    assert_eq!(prune(&world, "keep_days: 7, minimum_redundancy: 1").await.value, Some(json!(4)));
}

/// A proof of another file is none, and one series does not stand for another.
#[tokio::test]
async fn each_series_is_judged_by_itself() {
    let world = World::new(&json!({}), &[]);
    backup(&world, "full_0", 0, Some(Level::Restore));
    backup(&world, "critical_20", 20, Some(Level::Restore));
    backup(&world, "critical_30", 30, None);
    let path = world.context.directory.join("backups/full_0");
    let proof = Verified { sha256: "of another".into(), ..Verified::read(&path).unwrap() };
    backup(&world, "full_40", 40, None);
    proof.write(&path).unwrap();
    insta::assert_snapshot!(table(&prune(&world, "keep_days: 7, minimum_redundancy: 1").await), @r"
    full_0: stays: young enough
    critical_20: stays: one of the newest
    critical_30: removed
    full_40: stays: no newer one is proven
    ");
}

#[tokio::test]
async fn links_are_not_followed_and_damage_is_told() {
    let world = World::new(&json!({}), &[]);
    backup(&world, "full_0", 0, Some(Level::Restore));
    backup(&world, "full_20", 20, Some(Level::Restore));
    backup(&world, "full_30", 30, Some(Level::Restore));
    let directory = world.context.directory.join("backups");
    let precious = world.context.directory.join("precious");
    fs::rename(directory.join("full_30"), &precious).unwrap();
    std::os::unix::fs::symlink(&precious, directory.join("full_30")).unwrap();
    fs::write(directory.join("other.manifest.json"), "{").unwrap();
    let done = prune(&world, "keep_days: 7, minimum_redundancy: 1").await;
    assert_eq!(done.value, Some(json!(1)));
    assert_eq!(done.findings.len(), 2, "{:?}", done.findings);
    assert!(precious.exists() && directory.join("full_30").symlink_metadata().is_ok());
    std::os::unix::fs::symlink(&directory, world.context.directory.join("linked")).unwrap();
    let error = action::<PruneBackups>("{dir: linked, keep_days: 7}").run(&world.context).await.unwrap_err();
    assert!(error.message.ends_with("linked is a link; nothing was removed"));
}

/// As a kill in the middle leaves it.
#[tokio::test]
async fn what_was_begun_is_finished() {
    let world = World::new(&json!({}), &[]);
    backup(&world, "full_0", 0, Some(Level::Restore));
    backup(&world, "full_30", 30, Some(Level::Restore));
    let path = world.context.directory.join("backups/full_30");
    fs::rename(beside(&path, MANIFEST), beside(&path, REMOVING)).unwrap();
    let told = prune(&world, "keep_days: 7, dry_run: true").await;
    assert_eq!((told.value, path.exists()), (Some(json!(0)), true));
    prune(&world, "keep_days: 7").await;
    assert_eq!(names(&world), ["full_0", "full_0.manifest.json", "full_0.sha256", "full_0.verified.json"]);
}
