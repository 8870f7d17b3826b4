//! The copy itself: what is in it, what is left out, and an interrupted attempt.

use std::sync::Arc;

use serde_json::json;

use super::super::environment::ProcessEnvironment;
use super::super::testing::{World, action, problems};
use super::*;
use crate::target::Variables;

fn world(variables: &[(&str, &str)]) -> World {
    let mut world = World::new(&json!({}), &[("hook", "s3cret-hook")]);
    let variables = Variables::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    world.context.environment = Arc::new(ProcessEnvironment { variables, secrets: ["CHAT".to_owned()].into() });
    world
}

fn read(world: &World, file: &str) -> String {
    std::fs::read_to_string(world.context.directory.join(file)).unwrap()
}

#[test]
fn patterns_fit_names() {
    for (pattern, name, expected) in [
        ("A", "A", true),
        ("A", "AB", false),
        ("*", "ANY", true),
        ("VITE_*", "VITE_URL", true),
        ("VITE_*", "XVITE_URL", false),
        ("*_URL", "A_URL", true),
        ("A*B*C", "AxBxC", true),
        ("A*B*C", "AxCxB", false),
        ("A*A", "A", false),
        ("*A*", "xAx", true),
    ] {
        assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
    }
}

#[tokio::test]
async fn secrets_are_left_out_by_declaration_name_and_value() {
    let world = world(&[
        ("NODE_ENV", "production"),
        ("CHAT", "elsewhere"),
        ("NOTE", "see s3cret-hook"),
        ("ANON_KEY", "abc"),
        ("DB", "postgres://u:p@h/d"),
        ("UID", "0"),
        ("odd-name", "1"),
    ]);
    let result = action::<EnvBackup>("{file: a.env, variables: ['*']}").run(&world.context).await.unwrap();
    assert_eq!(result.summary, "1 variable, 4 secrets left out");
    assert_eq!(result.json.unwrap(), json!({"written": ["NODE_ENV"], "left_out": ["ANON_KEY", "CHAT", "DB", "NOTE"]}));
    assert_eq!(result.findings, ["left out, because no shell could set them again: UID, odd-name"]);
    let text = read(&world, "a.env");
    let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(values, ["NODE_ENV='production'"]);
    let all = action::<EnvBackup>("{file: b.env, variables: ['*'], secrets: true}").run(&world.context).await.unwrap();
    assert_eq!(all.summary, "5 variables");
    assert!(read(&world, "b.env").contains("NOTE='see s3cret-hook'"));
}

#[tokio::test]
async fn an_interrupted_attempt_is_taken_up_where_it_ended() {
    let mut world = world(&[("A", "1")]);
    let backup = action::<EnvBackup>("{file: a.env, variables: [A], baseline: a.json}");
    std::fs::create_dir(world.context.directory.join("a.env.partial")).unwrap();
    assert!(backup.run(&world.context).await.unwrap_err().message.starts_with("cannot write "));
    assert!(world.context.directory.join("a.json").exists(), "the baseline was there first");
    std::fs::remove_dir(world.context.directory.join("a.env.partial")).unwrap();
    backup.run(&world.context).await.unwrap();
    let error = backup.run(&world.context).await.unwrap_err();
    assert!(error.message.contains("exists already; nothing was overwritten"), "{error:?}");
    let before = (read(&world, "a.env"), read(&world, "a.json"));
    world.context.uncertain = true;
    assert_eq!(backup.run(&world.context).await.unwrap().summary, "1 variable, written before the interruption");
    assert_eq!((read(&world, "a.env"), read(&world, "a.json")), before);
    // Killed between the two files: the baseline is recorded again.
    std::fs::remove_file(world.context.directory.join("a.env")).unwrap();
    assert_eq!(backup.run(&world.context).await.unwrap().summary, "1 variable");
    assert_ne!(read(&world, "a.json"), before.1);
    // Another step's file is not ours.
    world.context.step = "another".into();
    assert!(backup.run(&world.context).await.is_err());
}

#[test]
fn mistakes_are_found_beforehand() {
    assert_eq!(
        problems(&action::<EnvBackup>("{file: a.env, variables: [A-B, '2*', 'X_*']}")),
        [
            "`A-B` is neither a name of an environment variable nor a pattern of one",
            "`2*` is neither a name of an environment variable nor a pattern of one"
        ]
    );
    assert_eq!(problems(&action::<EnvBackup>("{file: a.env, variables: []}")), ["`variables` is empty, so nothing would be written"]);
}
