//! Environment variables: checked, kept, compared; and no value is ever shown.

use std::os::unix::fs::PermissionsExt;

use crate::environment::{Output, TestEnv};
use crate::secrets::files;
use crate::snapshot::failure;
use crate::stock_audit::{run_of, stable};

const KEY: &str = "eyJhbGciOiJIUzI1NiJ9.c2VydmljZQ.c2lnbmF0dXJl";

fn check(variables: &[(&str, &str)], step: &str) -> (TestEnv, Output) {
    let mut env = TestEnv::new();
    for (name, value) in variables {
        env.set(name, value);
    }
    env.write("check.yaml", format!("version: 1\nname: check\nsteps:\n  - id: variables\n    {step}\n"));
    let output = env.runbook(["run", "check.yaml"]).run();
    (env, output)
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_never_a_value() {
    let variables = [
        ("SUPABASE_URL", "http://project.supabase.co"),
        ("SUPABASE_SERVICE_ROLE_KEY", "your_service_role_key"),
        ("NODE_ENV", "prod"),
        ("CORS_ORIGIN", " https://app.example.com"),
        ("EMPTY", ""),
        ("PORT", "80a"),
        ("MIRROR_URL", "https://other.example.com"),
    ];
    let (_, output) = check(
        &variables,
        "env_check:
      variables:
        SUPABASE_URL: {format: https}
        MIRROR_URL: {format: https, same_as: SUPABASE_URL}
        SUPABASE_SERVICE_ROLE_KEY: {secret: true, min_length: 20}
        NODE_ENV: {one_of: [production, staging]}
        CORS_ORIGIN: {pattern: '^https://'}
        EMPTY: {}
        PORT: {format: port}
        DATABASE_URL: {}
        SENTRY_RELEASE: {required: false}",
    );
    insta::assert_snapshot!(failure(&output.exits(3)), @"
    FAILED         [DURATION]  variables → 8 of 9 variables not as they must be
      8 of 9 variables in the environment are not as they must be
      step          variables
      where         check.yaml:[PLACE]
                    7 |         SUPABASE_URL: {format: https}
      SUPABASE_URL  is not an https:// URL
      MIRROR_URL    is not the same as SUPABASE_URL
      SUPABASE_SERVICE_ROLE_KEY  looks like a placeholder, not like a secret
      NODE_ENV      is none of production, staging
      CORS_ORIGIN   begins or ends with a blank or a carriage return; does not match ^https://
      EMPTY         is empty
      PORT          is not a port
      DATABASE_URL  is not set
      state         this step changed nothing, or what it changed was rolled back
    ");
}

#[test]
fn a_variable_that_is_not_text_is_named() {
    let env = TestEnv::new();
    env.write("check.yaml", "version: 1\nname: check\nsteps:\n  - {id: a, env_check: {variables: {ODD: {}}}}\n");
    let script = format!("ODD=$(printf '\\377') exec '{}' run check.yaml", env!("CARGO_BIN_EXE_runbook"));
    let output = env.command("sh", ["-c", &script]).run().exits(3);
    assert!(output.stdout.contains("is not UTF-8 text"), "{output}");
}

#[test]
fn a_dotenv_file_is_read_literally_and_its_traps_are_told() {
    let step = "env_check: {file: .env, variables: {A: {}, B: {secret: true}}}";
    let (env, output) = check(&[], step);
    assert!(failure(&output.exits(3)).contains("cannot read"));
    env.write(".env", "A=\"x$HOME\"\nB='stands for a secret'\nA=1 2\n");
    let output = env.runbook(["run", "check.yaml"]).run().exits(0);
    insta::assert_snapshot!(stable(&output.stdout), @"
    check  1 step, run [RUN]

    done           [DURATION]  variables → 2 variables as they must be
      finding   A is set twice; the last one counts (line 3)
      finding   `[DIR]/.env` holds secrets and other users can read it (mode 0644): chmod 600

    done after [DURATION]: 1 done
      2 findings:
        variables: A is set twice; the last one counts (line 3)
        variables: `[DIR]/.env` holds secrets and other users can read it (mode 0644): chmod 600
      runbook show [RUN]  every step, who confirmed what
    ");
    env.write(".env", "A=1\nhunter2 is no assignment\n");
    let output = env.runbook(["run", "check.yaml"]).run().exits(3);
    insta::assert_snapshot!(failure(&output), @"
    FAILED         [DURATION]  variables
      `[DIR]/.env`, line 2: it sets no variable
      step      variables
      where     check.yaml:[PLACE]
                [LINE] |     env_check: {file: .env, variables: {A: {}, B: {secret: true}}}
      state     this step changed nothing, or what it changed was rolled back
      hint      write one NAME='value' a line
    ");
    assert!(!output.raw_stdout.contains("hunter2"));
}

#[test]
fn a_baseline_that_is_missing_says_how_to_record_one() {
    let step = "env_check: {variables: {HOME: {fixed: true}}, baseline: baseline.json}";
    let (env, output) = check(&[], step);
    insta::assert_snapshot!(failure(&output.exits(3)), @"
    FAILED         [DURATION]  variables
      there is no baseline `[DIR]/baseline.json`, so whether anything changed cannot be told
      step      variables
      where     check.yaml:[PLACE]
                [LINE] |     env_check: {variables: {HOME: {fixed: true}}, baseline: baseline.json}
      state     this step changed nothing, or what it changed was rolled back
      hint      record one beforehand: `env_check` with `record: true`, or `env_backup` with `baseline:`
    ");
    env.write("record.yaml", env.read("check.yaml").replace("baseline.json}", "baseline.json, record: true}"));
    env.runbook(["run", "record.yaml"]).run().exits(0);
    env.runbook(["run", "check.yaml"]).run().exits(0);
    let changed = env.runbook(["run", "check.yaml"]).env("HOME", "/elsewhere").run().exits(3);
    assert!(changed.stdout.contains("has changed since [TIMESTAMP]"), "{changed}");
    env.write("baseline.json", env.read("baseline.json").replace("pbkdf2", "rot13"));
    let unknown = env.runbook(["run", "check.yaml"]).run().exits(3);
    assert!(unknown.stdout.contains("of a kind that this version of runbook does not know"), "{unknown}");
}

#[test]
fn mistakes_are_found_by_validate() {
    let env = TestEnv::new();
    let playbook = "version: 1
name: mistakes
steps:
  - id: check
    env_check:
      variables:
        A-B: {}
        FIXED: {fixed: true}
        SHAPE: {format: hostname}
        PATTERN: {pattern: '('}
  - id: keep
    env_backup: {file: a.env, variables: ['2*']}
";
    env.write("mistakes.yaml", playbook);
    insta::assert_snapshot!(env.runbook(["validate", "mistakes.yaml"]).run().exits(65).stderr, @"
    error[invalid-value]: expected `url`, `https`, `integer`, `port`, `boolean`, `uuid`, `jwt` or `json`, found the text `hostname`
     --> mistakes.yaml:9:25
      |
    9 |         SHAPE: {format: hostname}
      |                         ^^^^^^^^
      |
      = help: `format`: What kind of value it is.

    error[env-backup]: `2*` is neither a name of an environment variable nor a pattern of one
      --> mistakes.yaml:12:43
       |
    12 |     env_backup: {file: a.env, variables: ['2*']}
       |                                           ^^^^
       |
       = help: use letters, digits and `_`, and `*` for any of them

    2 errors
    ");
    env.write("mistakes.yaml", playbook.replace(": {format: hostname}", ": {}").replace("'('", "x"));
    insta::assert_snapshot!(env.runbook(["validate", "mistakes.yaml"]).run().exits(65).stderr, @"
    error[env-check]: `A-B` is not a name of an environment variable
     --> mistakes.yaml:7:9
      |
    7 |         A-B: {}
      |         ^^^
      |
      = help: use letters, digits and `_`, not beginning with a digit

    error[env-check]: `FIXED` is `fixed`, but there is no `baseline` to compare it with
     --> mistakes.yaml:8:9
      |
    8 |         FIXED: {fixed: true}
      |         ^^^^^
      |
      = help: name the file: `baseline: env-baseline.json`

    error[env-backup]: `2*` is neither a name of an environment variable nor a pattern of one
      --> mistakes.yaml:12:43
       |
    12 |     env_backup: {file: a.env, variables: ['2*']}
       |                                           ^^^^
       |
       = help: use letters, digits and `_`, and `*` for any of them

    3 errors
    ");
}

#[test]
fn a_backup_is_read_back_by_a_shell_and_holds_no_secret_unasked() {
    let mut env = TestEnv::new();
    let nasty = "it's \"two\" $HOME `id`\nlines \\ ";
    env.set("APP_NOTE", nasty).set("APP_ANON_KEY", KEY).set("APP_HOOK", "declared-s3cret").set("COPY", "see declared-s3cret");
    let playbook = |more: &str| {
        format!(
            "version: 1\nname: keep\nsecrets: {{hook: {{env: APP_HOOK}}}}\nsteps:\n  - id: keep\n    \
             env_backup: {{file: 'kept/{{{{ run.id }}}}.env', variables: ['APP_*', COPY]{more}}}\n"
        )
    };
    env.write("keep.yaml", playbook(""));
    let output = env.runbook(["run", "keep.yaml"]).run().exits(0);
    insta::assert_snapshot!(stable(&output.stdout), @"
    keep  1 step, run [RUN]

    done           [DURATION]  keep → 1 variable, 3 secrets left out

    done after [DURATION]: 1 done
      runbook show [RUN]  every step, who confirmed what
    ");
    let file = format!("kept/{}.env", run_of(&output));
    assert_eq!(std::fs::metadata(env.path(&file)).unwrap().permissions().mode() & 0o777, 0o600);
    let text = env.read(&file);
    assert!(text.contains("# left out as secrets (`secrets: true` writes them): APP_ANON_KEY, APP_HOOK, COPY\n"), "{text}");
    assert_eq!(text.matches("='").count(), 1, "{text}");
    let script = format!("unset APP_NOTE; set -a; . './{file}'; sh -c 'printf %s \"$APP_NOTE\"'");
    assert_eq!(env.command("sh", ["-c", &script]).run().exits(0).raw_stdout, nasty);

    env.write("keep.yaml", playbook(", secrets: true"));
    let output = env.runbook(["run", "keep.yaml"]).run().exits(0);
    let with_secrets = env.path(format!("kept/{}.env", run_of(&output)));
    assert!(std::fs::read_to_string(&with_secrets).unwrap().contains("APP_HOOK='declared-s3cret'"));
    for file in files(&env.path("..")).into_iter().filter(|file| file.canonicalize().unwrap() != with_secrets.canonicalize().unwrap()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("declared-s3cret"), "{}", file.display());
    }
}

#[test]
fn a_backup_of_what_is_not_there_is_refused() {
    let env = TestEnv::new();
    env.write(
        "keep.yaml",
        "version: 1\nname: keep\nsteps:\n  - {id: keep, env_backup: {file: a.env, variables: [HOME, NOT_SET, 'VITE_*']}}\n",
    );
    insta::assert_snapshot!(failure(&env.runbook(["run", "keep.yaml"]).run().exits(3)), @"
    FAILED         [DURATION]  keep
      NOT_SET, VITE_* are not set in the environment
      step      keep
      where     keep.yaml:[PLACE]
                4 |   - {id: keep, env_backup: {file: a.env, variables: [HOME, NOT_SET, 'VITE_*']}}
      state     this step changed nothing, or what it changed was rolled back
      hint      a backup without them would pass for a whole one; set them, or take them out of `variables`
    ");
    assert!(!env.path("a.env").exists());
}

fn deploy(deployment: Option<&str>) -> (TestEnv, Output) {
    let env = TestEnv::new();
    env.copy_from_project("playbooks");
    env.copy_from_project("examples");
    if let Some(script) = deployment {
        let script = format!("#!/bin/sh\nset -eu\nplatform=$(dirname \"$0\")/platform.env\n{script}\n");
        env.write("examples/env-safety/deploy", script);
    }
    let parameters = ["env=production", "fetch=examples/env-safety/fetch", "deploy=examples/env-safety/deploy"];
    let parameters = parameters.into_iter().flat_map(|parameter| ["--param", parameter]);
    let output = env.runbook(["run", "playbooks/env-safety.yaml"].into_iter().chain(parameters)).run();
    (env, output)
}

#[test]
fn a_deployment_that_leaves_the_variables_alone_is_fine() {
    let (env, output) = deploy(None);
    insta::assert_snapshot!(stable(&output.exits(0).stdout), @"
    env-safety  9 steps, run [RUN]

    done           [DURATION]  Fetch the platform's variables → exit code 0
    done           [DURATION]  The variables are there and well-formed → 8 variables, 6 recorded
    done           [DURATION]  Keep a copy of the variables → 4 variables, 4 secrets left out
    done           [DURATION]  Deploy → exit code 0
    done           [DURATION]  Fetch the platform's variables again → exit code 0
    done           [DURATION]  None of the fixed variables has changed → 8 variables, 6 unchanged since [TIMESTAMP]
    done           [DURATION]  Remove what was fetched → exit code 0
    done           [DURATION]  The variables are as they were → steps.check_after.status == 'done'

    done after [DURATION]: 8 done
      runbook show [RUN]  every step, who confirmed what
    ");
    let mut kept: Vec<String> =
        files(&env.path("backups")).iter().map(|file| env.normalise(&file.file_name().unwrap().to_string_lossy())).collect();
    kept.sort();
    assert_eq!(kept, ["env-[RUN].baseline.json", "env-[RUN].env"], "what was fetched is removed");
    for file in files(&env.path("backups")).into_iter().chain(files(&env.state(""))) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("stands-for-the-service-role-key"), "{}", file.display());
    }
}

#[test]
fn a_deployment_that_changes_fixed_variables_is_stopped() {
    let script = "sed -i -e 's/^SUPABASE_URL=.*/SUPABASE_URL=https:\\/\\/other.supabase.co/' -e '/^JWT_SECRET=/d' \"$platform\"";
    let (_, output) = deploy(Some(script));
    insta::assert_snapshot!(stable(&output.exits(3).stdout), @"
    env-safety  9 steps, run [RUN]

    done           [DURATION]  Fetch the platform's variables → exit code 0
    done           [DURATION]  The variables are there and well-formed → 8 variables, 6 recorded
    done           [DURATION]  Keep a copy of the variables → 4 variables, 4 secrets left out
    done           [DURATION]  Deploy → exit code 0
    done           [DURATION]  Fetch the platform's variables again → exit code 0
    FAILED         [DURATION]  None of the fixed variables has changed → 3 of 8 variables not as they must be
      3 of 8 variables in `[DIR]/backups/env-[RUN].after.env` are not as they must be
      step               check_after
      where              playbooks/env-safety.yaml:[PLACE]
                         44 |         SUPABASE_URL: {format: https, fixed: true}
      SUPABASE_URL       has changed since [TIMESTAMP]
      VITE_SUPABASE_URL  is not the same as SUPABASE_URL
      JWT_SECRET         is not set; was set at [TIMESTAMP]
      state              this step changed nothing, or what it changed was rolled back
      next               runbook show [RUN] check_after  its attempts and output
                         runbook resume [RUN]  tries again from here; what is done stays done
    done           [DURATION]  Remove what was fetched → exit code 0
    FAILED         [DURATION]  The variables are as they were → steps.check_after.status == 'done'
      The variables are not as they must be after the deployment. Set them back before anything is written to the
      wrong place; those before it, without secrets, are in [DIR]/backups/env-[RUN].env. Then `runbook resume` looks again.
      step       verdict
      condition  steps.check_after.status == 'done'
      steps.check_after.status  failed
      state      this step changed nothing, or what it changed was rolled back
      next       runbook show [RUN] verdict  its attempts and output
                 runbook resume [RUN]  tries again from here; what is done stays done

    failed after [DURATION]: 6 done, 2 failed
      runbook resume [RUN]  tries again; what is done stays done
    ");
}

#[test]
fn a_changed_variable_that_is_set_back_is_fine_after_a_resume() {
    let (env, output) = deploy(Some("cp \"$platform\" \"$platform.old\"; sed -i 's/^JWT_SECRET=.*/JWT_SECRET=changeme/' \"$platform\""));
    assert!(output.stdout.contains("looks like a placeholder, not like a secret; has changed since [TIMESTAMP]"), "{output}");
    env.write("examples/env-safety/platform.env", env.read("examples/env-safety/platform.env.old"));
    let output = env.runbook(["resume", &run_of(&output.exits(3))]).run().exits(0);
    assert!(crate::stock_audit::said_of(&output, "None of the fixed variables has changed").starts_with("done"), "{output}");
    assert!(!output.stdout.contains("Deploy →"), "it is not deployed again: {output}");
}

#[test]
fn variables_that_do_not_fit_together_stop_it_before_the_deployment() {
    let env = TestEnv::new();
    env.copy_from_project("playbooks");
    env.copy_from_project("examples");
    let platform = env.read("examples/env-safety/platform.env");
    let platform = platform
        .replace("VITE_SUPABASE_URL='https://stands", "VITE_SUPABASE_URL='https://falls")
        .replace("crm.example.com'", "crm.example.com/'");
    env.write("examples/env-safety/platform.env", platform);
    let arguments = "run playbooks/env-safety.yaml -p env=production -p fetch=examples/env-safety/fetch -p deploy=/bin/false";
    let output = env.runbook(arguments.split(' ')).run().exits(3);
    assert!(output.stdout.contains("Nothing was deployed. Mend the variables and start a new run"), "{output}");
    assert!(output.stdout.contains("skipped               The variables are as they were"), "{output}");
    insta::assert_snapshot!(failure(&output), @"
    FAILED         [DURATION]  The variables are there and well-formed → 2 of 8 variables not as they must be
      2 of 8 variables in `[DIR]/backups/env-[RUN].before.env` are not as they must be
      step               check_before
      where              playbooks/env-safety.yaml:[PLACE]
                         44 |         SUPABASE_URL: {format: https, fixed: true}
      VITE_SUPABASE_URL  is not the same as SUPABASE_URL
      CORS_ORIGIN        does not match [^/]$
      state              this step changed nothing, or what it changed was rolled back
    ");
}
