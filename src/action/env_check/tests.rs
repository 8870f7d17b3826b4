//! Every rule beside a value that breaks it, and baselines.

use std::sync::Arc;

use serde_json::json;

use super::super::testing::{World, action, problems};
use super::*;
use crate::target::Variables;

fn world(variables: &[(&str, &str)]) -> World {
    let mut world = World::new(&json!({}), &[]);
    set(&mut world, variables);
    world
}

fn set(world: &mut World, variables: &[(&str, &str)]) {
    let variables = Variables::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    world.context.environment = Arc::new(ProcessEnvironment { variables, ..ProcessEnvironment::default() });
}

/// What a rule says of a value; empty when all is well.
async fn judged(rule: &str, value: &str) -> String {
    let check = action::<EnvCheck>(&format!("variables: {{A: {rule}}}"));
    match check.run(&world(&[("A", value)]).context).await {
        Ok(_) => String::new(),
        Err(error) => error.facts[0].1.clone(),
    }
}

#[tokio::test]
async fn rules_say_what_is_wrong_and_never_the_value() {
    let token = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2ln";
    for (rule, value, expected) in [
        ("{}", "x", ""),
        ("{}", "", "is empty"),
        ("{required: false}", "", ""),
        ("{}", " x", "begins or ends with a blank or a carriage return"),
        ("{}", "x\r", "begins or ends with a blank or a carriage return"),
        ("{}", "a\nb\n", ""),
        ("{}", "\"x\"", "stands in quotes, which are part of its value"),
        ("{format: json}", "\"x\"", ""),
        ("{format: url}", "postgres://u:p@db/x", ""),
        ("{format: url}", "db.example.com", "is not a URL"),
        ("{format: https}", "http://a.example", "is not an https:// URL"),
        ("{format: port}", "0", "is not a port"),
        ("{format: port}", "5432", ""),
        ("{format: integer}", "1.5", "is not a whole number"),
        ("{format: boolean}", "TRUE", ""),
        ("{format: boolean}", "maybe", "is not true or false"),
        ("{format: uuid}", "123e4567-e89b-12d3-a456-426614174000", ""),
        ("{format: uuid}", "123e4567", "is not a UUID"),
        ("{format: jwt}", token, ""),
        ("{format: jwt}", "a.b.c", "is not a JSON web token"),
        ("{one_of: [staging, production]}", "prod", "is none of staging, production"),
        ("{pattern: ^https://}", "x\nhttps://a", "does not match ^https://"),
        ("{min_length: 3}", "ab", "has fewer than 3 characters (2)"),
        ("{min_length: 3, secret: true}", "ab", "has fewer than 3 characters"),
        ("{max_length: 1}", "ü", ""),
        ("{secret: true}", "your_anon_key", "looks like a placeholder, not like a secret"),
        ("{secret: true}", "xxxxxxxx", "looks like a placeholder, not like a secret"),
        (
            "{secret: true, min_length: 20, pattern: ^s}",
            "changeme",
            "does not match ^s; has fewer than 20 characters; looks like a placeholder, not like a secret",
        ),
    ] {
        assert_eq!(judged(rule, value).await, expected, "{rule} {value}");
    }
}

#[tokio::test]
async fn a_recorded_baseline_is_compared_and_never_overwritten() {
    let mut world = world(&[("A", "one"), ("B", "x")]);
    let record =
        action::<EnvCheck>("{variables: {A: {fixed: true}, B: {}, C: {required: false, fixed: true}}, baseline: b.json, record: true}");
    let check = action::<EnvCheck>("{variables: {A: {fixed: true}, B: {}, C: {required: false, fixed: true}}, baseline: b.json}");
    let missing = check.run(&world.context).await.unwrap_err();
    assert!(missing.message.starts_with("there is no baseline `") && missing.hints[0].contains("record: true"), "{missing:?}");
    assert_eq!(record.run(&world.context).await.unwrap().summary, "3 variables, 2 recorded");
    let result = check.run(&world.context).await.unwrap();
    assert!(result.summary.starts_with("3 variables, 2 unchanged since 20"), "{}", result.summary);
    assert_eq!(result.json.unwrap()["variables"], json!({"A": "unchanged", "B": "fine", "C": "unchanged"}));
    world.context.run = "a later run".into();
    assert!(record.run(&world.context).await.unwrap_err().message.contains("exists already; nothing was overwritten"));
    set(&mut world, &[("A", "two"), ("B", "y"), ("C", "new")]);
    let error = check.run(&world.context).await.unwrap_err();
    assert_eq!(error.message, "2 of 3 variables in the environment are not as they must be");
    assert!(error.facts[0].1.starts_with("has changed since 20") && error.facts[1].1.ends_with(", and is now"), "{error:?}");
    assert!(!format!("{error:?}").contains("two"));
    world.context.run = "run".into();
    assert!(record.run(&world.context).await.is_ok(), "what the step wrote in an attempt that failed is recorded again");
    assert!(check.run(&world.context).await.is_ok());
}

#[test]
fn mistakes_are_found_beforehand() {
    for (yaml, expected) in [
        ("variables: {}", "no variable is named, so nothing is checked"),
        ("variables: {A-B: {}}", "`A-B` is not a name of an environment variable"),
        ("variables: {A: {fixed: true}}", "`A` is `fixed`, but there is no `baseline` to compare it with"),
        ("{variables: {A: {}}, baseline: b.json}", "there is a `baseline`, but no variable is `fixed`"),
        ("{variables: {A: {}}, record: true}", "`record: true` needs a `baseline` to write"),
        ("variables: {A: {same_as: B}}", "`B` is not in the list of variables"),
        ("variables: {A: {one_of: []}}", "`one_of` of `A` is empty, so no value is allowed"),
        ("variables: {A: {min_length: 3, max_length: 2}}", "the `min_length` of `A` is greater than its `max_length`"),
    ] {
        assert_eq!(problems(&action::<EnvCheck>(yaml)), [expected], "{yaml}");
    }
}
