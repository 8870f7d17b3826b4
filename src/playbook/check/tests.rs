//! What types can't say about a playbook, found all at once.

mod declarations;
mod unfinished;

use super::*;
use crate::diagnostic::render;
use crate::playbook::decode::decode;
use crate::source::SourceFile;
use crate::yaml;

/// What is said about a playbook with this top and these steps.
fn problems(top: &str, steps: &str) -> String {
    let text = format!("version: 1\nname: x\n{top}steps:\n{steps}");
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("x.yaml", text));
    let tree = yaml::parse(&sources, source).unwrap_or_else(|problems| panic!("{}", render(&sources, &problems, false)));
    let decoded = decode(&tree);
    let mut diagnostics = decoded.diagnostics;
    if let Some(playbook) = &decoded.playbook {
        let written = Written { tree: &tree, sources: &sources, complete: decoded.complete, included: false };
        diagnostics.extend(check(playbook, &written));
    }
    render(&sources, &diagnostics, false).trim_end().to_owned()
}

const CONNECTION: &str = "connections: {main: {url: \"{{ env.DATABASE_URL }}\"}}\n";

#[test]
fn a_sound_playbook_has_no_problems() {
    let top = r#"
params:
  limit: {type: integer, default: "{{ env.LIMIT }}"}
  targets: {type: list, default: [a, b]}
secrets: {token: {env: TOKEN}}
connections: {main: {url: "{{ env.DATABASE_URL }}", expect: {database: "{{ params.limit }}"}}}
channels: {chat: {webhook: "{{ secrets.token }}"}}
"#;
    let steps = r#"
  - {id: pre-check, sql: {query: "SELECT {{ params.limit }}"}, outputs: {n: "value + 1"}}
  - {id: b, needs: [], shell: {run: echo, env: {T: "{{ secrets.token }}"}}}
  - id: c
    needs: [b, pre-check]
    when: steps['pre-check'].outputs.n > 0 and run.environment == 'x'
    for_each: "{{ params.targets }}"
    as: target
    assert: {that: target != '' and index >= 0}
  - {id: d, notify: {to: [console, chat], message: "{% for x in steps.b.stdout %}{{ x }}{% endfor %}"}}
always:
  - {id: e, assert: {that: steps.d.status == 'done'}}
"#;
    assert_eq!(problems(top, steps), "");
}

#[test]
fn names_that_nobody_declared_are_all_reported() {
    let top = "params: {limit: {type: integer}, env: {type: string}}\nsecrets: {token: {env: T}}\n";
    let steps = r#"
  - id: a
    sql: {query: "SELECT {{ params.limti }}, {{ secrets.tokne }}, {{ env.HOME }}, {{ limit }}"}
  - id: b
    needs: [aa]
    when: steps.c.value == 1 and steps.a.vlaue == item
    assert:
      that: |
        steps.a.value > 0
        and run.started == "x" and runn.id == a
  - id: c
    notify: {to: [chta], message: "{{ params.limit.x }} {{ connections.main.database }}"}
"#;
    insta::assert_snapshot!(problems(top, steps), @r#"
    error[unknown-connection]: a database is needed here, but no connection is declared
     --> x.yaml:8:5
      |
    8 |     sql: {query: "SELECT {{ params.limti }}, {{ secrets.tokne }}, {{ env.HOME }}, {{ limit }}"}
      |     ^^^
      |
      = help: declare one: `connections: {main: {url: "{{ env.DATABASE_URL }}"}}`

    error[undeclared]: no parameter is called `limti`
     --> x.yaml:8:29
      |
    8 |     sql: {query: "SELECT {{ params.limti }}, {{ secrets.tokne }}, {{ env.HOME }}, {{ limit }}"}
      |                             ^^^^^^^^^^^^
      |
      = help: did you mean `limit`?
      = help: known: env, limit

    error[undeclared]: no secret is called `tokne`
     --> x.yaml:8:49
      |
    8 |     sql: {query: "SELECT {{ params.limti }}, {{ secrets.tokne }}, {{ env.HOME }}, {{ limit }}"}
      |                                                 ^^^^^^^^^^^^^
      |
      = help: did you mean `token`?
      = help: known: token

    error[env-here]: the environment can't be read here
     --> x.yaml:8:70
      |
    8 |     sql: {query: "SELECT {{ params.limti }}, {{ secrets.tokne }}, {{ env.HOME }}, {{ limit }}"}
      |                                                                      ^^^^^^^^
      |
      = help: every input is declared at the top: a param with `default: "{{ env.NAME }}"`, or a secret with `env: NAME`

    error[unknown-name]: `limit` is not known here
     --> x.yaml:8:86
      |
    8 |     sql: {query: "SELECT {{ params.limti }}, {{ secrets.tokne }}, {{ env.HOME }}, {{ limit }}"}
      |                                                                                      ^^^^^
      |
      = help: a parameter is read as `params.limit`

    error[unknown-step]: no step has the id `aa`
      --> x.yaml:10:13
       |
    10 |     needs: [aa]
       |             ^^
       |
       = help: known: a, b, c

    error[not-upstream]: `b` does not wait for `c`, so its result may not be there
      --> x.yaml:11:11
       |
    11 |     when: steps.c.value == 1 and steps.a.vlaue == item
       |           ^^^^^^^^^^^^^
    ...
    16 |   - id: c
       |         - `c` is here
       |
       = help: add `c` to the `needs` of `b`

    error[not-upstream]: `b` does not wait for `a`, so its result may not be there
      --> x.yaml:11:34
       |
     7 |   - id: a
       |         - `a` is here
    ...
    11 |     when: steps.c.value == 1 and steps.a.vlaue == item
       |                                  ^^^^^^^^^^^^^
       |
       = help: add `a` to the `needs` of `b`

    error[unknown-field]: `vlaue` is nothing that is known of `a`
      --> x.yaml:11:34
       |
    11 |     when: steps.c.value == 1 and steps.a.vlaue == item
       |                                  ^^^^^^^^^^^^^
       |
       = help: did you mean `value`?
       = help: known: status, value, rows, columns, row_count, rows_affected, stdout, stderr, exit_code, json, http_status, answer, file, outputs, findings

    error[unknown-name]: `item` is not known here
      --> x.yaml:11:51
       |
    11 |     when: steps.c.value == 1 and steps.a.vlaue == item
       |                                                   ^^^^
       |
       = help: it is known in a step with `for_each`

    error[not-upstream]: `b` does not wait for `a`, so its result may not be there
      --> x.yaml:14:9
       |
     7 |   - id: a
       |         - `a` is here
    ...
    14 |         steps.a.value > 0
       |         ^^^^^^^^^^^^^
       |
       = help: add `a` to the `needs` of `b`

    error[unknown-field]: `started` is nothing that is known of the run
      --> x.yaml:15:13
       |
    15 |         and run.started == "x" and runn.id == a
       |             ^^^^^^^^^^^
       |
       = help: did you mean `started_at`?
       = help: known: id, started_at, playbook, environment, user, host

    error[unknown-name]: `runn` is not known here
      --> x.yaml:15:36
       |
    15 |         and run.started == "x" and runn.id == a
       |                                    ^^^^^^^
       |
       = help: did you mean `run`?
       = help: known: params, secrets, steps, run, connections; text stands in quotes

    error[unknown-name]: `a` is not known here
      --> x.yaml:15:47
       |
    15 |         and run.started == "x" and runn.id == a
       |                                               ^
       |
       = help: a step's result is read as `steps.a.value`

    error[unknown-channel]: no channel is called `chta`
      --> x.yaml:17:19
       |
    17 |     notify: {to: [chta], message: "{{ params.limit.x }} {{ connections.main.database }}"}
       |                   ^^^^
       |
       = help: no channel is declared
       = help: `console` is always there

    error[undeclared]: no connection is called `main`
      --> x.yaml:17:60
       |
    17 |     notify: {to: [chta], message: "{{ params.limit.x }} {{ connections.main.database }}"}
       |                                                            ^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = help: no connection is declared
    "#);
}

#[test]
fn secrets_stay_out_of_sight() {
    let top = "secrets: {token: {env: T}}\n";
    let steps = r#"
  - {id: a, shell: {argv: [curl, -H, "Authorization: {{ secrets.token }}"]}}
  - {id: b, notify: {to: [console], message: "{{ secrets.token }}"}}
  - {id: c, confirm: {message: go, type_to_confirm: "{{ secrets }}"}}
"#;
    insta::assert_snapshot!(problems(top, steps), @r#"
    error[secret-exposed]: the secret `token` would be visible to every user of the machine, in the list of processes
     --> x.yaml:6:57
      |
    6 |   - {id: a, shell: {argv: [curl, -H, "Authorization: {{ secrets.token }}"]}}
      |                                                         ^^^^^^^^^^^^^
      |
      = help: pass it as a variable: `env: {TOKEN: "{{ secrets.NAME }}"}`

    error[secret-exposed]: the secret `token` would be shown to people
     --> x.yaml:7:50
      |
    7 |   - {id: b, notify: {to: [console], message: "{{ secrets.token }}"}}
      |                                                  ^^^^^^^^^^^^^
      |
      = help: leave it out of the text

    error[secret-exposed]: all secrets would be shown to people
     --> x.yaml:8:57
      |
    8 |   - {id: c, confirm: {message: go, type_to_confirm: "{{ secrets }}"}}
      |                                                         ^^^^^^^
      |
      = help: leave it out of the text
    "#);
}

#[test]
fn a_result_is_read_only_behind_its_step() {
    let steps = r#"
  - {id: a, needs: [], shell: {run: "true"}}
  - {id: b, needs: [], assert: {that: steps.a.exit_code == 0}}
  - {id: c, assert: {that: steps.b.value and steps.a.exit_code == 0 and steps.d.value}}
  - {id: d, needs: [a, c], assert: {that: steps.a.exit_code == 0 and steps.b.value and steps.d.value}}
on_success:
  - {id: f, assert: {that: steps.a.exit_code == 0 and steps.g.value}}
on_failure:
  - {id: g, needs: [a], assert: {that: "true"}}
always:
  - {id: h, assert: {that: steps.f.value and steps.g.value}}
"#;
    insta::assert_snapshot!(problems("", steps), @r#"
    error[not-upstream]: `b` does not wait for `a`, so its result may not be there
     --> x.yaml:6:39
      |
    5 |   - {id: a, needs: [], shell: {run: "true"}}
      |          - `a` is here
    6 |   - {id: b, needs: [], assert: {that: steps.a.exit_code == 0}}
      |                                       ^^^^^^^^^^^^^^^^^
      |
      = help: add `a` to the `needs` of `b`

    error[not-upstream]: `c` does not wait for `a`, so its result may not be there
     --> x.yaml:7:46
      |
    5 |   - {id: a, needs: [], shell: {run: "true"}}
      |          - `a` is here
    6 |   - {id: b, needs: [], assert: {that: steps.a.exit_code == 0}}
    7 |   - {id: c, assert: {that: steps.b.value and steps.a.exit_code == 0 and steps.d.value}}
      |                                              ^^^^^^^^^^^^^^^^^
      |
      = help: add `a` to the `needs` of `c`

    error[not-upstream]: `c` does not wait for `d`, so its result may not be there
     --> x.yaml:7:73
      |
    7 |   - {id: c, assert: {that: steps.b.value and steps.a.exit_code == 0 and steps.d.value}}
      |                                                                         ^^^^^^^^^^^^^
    8 |   - {id: d, needs: [a, c], assert: {that: steps.a.exit_code == 0 and steps.b.value and steps.d.value}}
      |          - `d` is here
      |
      = help: add `d` to the `needs` of `c`

    error[not-upstream]: `d` reads its own result, which is not there yet
     --> x.yaml:8:88
      |
    8 |   - {id: d, needs: [a, c], assert: {that: steps.a.exit_code == 0 and steps.b.value and steps.d.value}}
      |                                                                                        ^^^^^^^^^^^^^
      |
      = help: `outputs` and `expect` name parts of the result directly, such as `value`

    error[not-upstream]: `g` belongs to `on_failure`, which has not run by then
      --> x.yaml:10:55
       |
    10 |   - {id: f, assert: {that: steps.a.exit_code == 0 and steps.g.value}}
       |                                                       ^^^^^^^^^^^^^
    11 | on_failure:
    12 |   - {id: g, needs: [a], assert: {that: "true"}}
       |          - `g` is here

    error[needs-elsewhere]: `a` is a step of `steps`
      --> x.yaml:12:21
       |
    12 |   - {id: g, needs: [a], assert: {that: "true"}}
       |                     ^
       |
       = help: `needs` names steps of the same list; `on_failure`, `on_success` and `always` wait for all of `steps` anyway
    "#);
}

#[test]
fn an_undo_reads_the_result_of_its_step() {
    let steps = "  - {id: a, shell: {run: 'true'}, undo: {shell: {run: 'true', env: {N: '{{ steps.a.stdout }}'}}}}\n";
    assert_eq!(problems("", steps), "");
}

#[test]
fn what_cannot_reach_the_steps_of_an_included_playbook_is_refused() {
    let fine = "  - {id: a, when: 'true', tags: [x], needs: [], playbook: {file: other.yaml}}\n";
    assert_eq!(problems("", fine), "");
    let gate = "  - {id: a, confirm: Go on?, timeout: 5m, playbook: {file: other.yaml}}\n  - {id: b, outputs: {n: '1'}, playbook: {file: other.yaml}}\n";
    insta::assert_snapshot!(problems("", gate), @r"
    error[key-without-effect]: `timeout`, `confirm` have no effect on a step that includes a playbook
     --> x.yaml:4:10
      |
    4 |   - {id: a, confirm: Go on?, timeout: 5m, playbook: {file: other.yaml}}
      |          ^
      |
      = help: a step of its own with `confirm` goes in front; the other keys belong to the steps of the included playbook

    error[key-without-effect]: `outputs` has no effect on a step that includes a playbook
     --> x.yaml:5:10
      |
    5 |   - {id: b, outputs: {n: '1'}, playbook: {file: other.yaml}}
      |          ^
      |
      = help: write it at the steps of the included playbook; this one may have `needs`, `when` and `tags`
    ");
}

#[test]
fn a_gate_stands_alone_or_in_front_of_an_action() {
    let steps = "  - {id: a, confirm: Go on?}\n  - {id: b, confirm: Go on?, shell: {run: 'true'}}\n  - {id: c, shell: {run: 'true'}, confirm: {message: Go on?}}\n";
    assert_eq!(problems("", steps), "");
    insta::assert_snapshot!(problems("", "  - {id: a, confirm: Go on?, shell: {run: 'true'}, http: {url: x}}\n  - {id: b}\n"), @r"
    error[conflicting-keys]: `shell` and `http` cannot stand together
     --> x.yaml:4:52
      |
    4 |   - {id: a, confirm: Go on?, shell: {run: 'true'}, http: {url: x}}
      |                              ----- the other one   ^^^^
      |
      = help: exactly one of `sql`, `sql_batch`, `snapshot`, `import`, `pg_dump`, `sqlite_backup`, `verify_backup`, `pg_restore`, `prune_backups`, `env_check`, `env_backup`, `shell`, `http`, `confirm`, `manual`, `assert`, `notify` and `playbook` is allowed

    error[missing-key]: one of `sql`, `sql_batch`, `snapshot`, `import`, `pg_dump`, `sqlite_backup`, `verify_backup`, `pg_restore`, `prune_backups`, `env_check`, `env_backup`, `shell`, `http`, `confirm`, `manual`, `assert`, `notify` or `playbook` is missing
     --> x.yaml:5:5
      |
    5 |   - {id: b}
      |     ^^^^^^^
    ");
}

#[test]
fn circles_are_shown_as_a_path() {
    let steps = r#"
  - {id: z, needs: [], assert: {that: "true"}}
  - {id: a, needs: [z, c], assert: {that: "true"}}
  - {id: b, assert: {that: "true"}}
  - {id: c, needs: [b], assert: {that: "true"}}
  - {id: d, assert: {that: "true"}}
"#;
    insta::assert_snapshot!(problems("", steps), @r#"
    error[cycle]: these steps wait for each other: a → c → b → a
     --> x.yaml:6:10
      |
    6 |   - {id: a, needs: [z, c], assert: {that: "true"}}
      |          ^             - `a` waits for `c`
    7 |   - {id: b, assert: {that: "true"}}
      |          - waits for `a`, the step above
    8 |   - {id: c, needs: [b], assert: {that: "true"}}
      |                     - `c` waits for `b`
    "#);
    insta::assert_snapshot!(problems("", "  - {id: a, needs: [a], assert: {that: true}}\n"), @r"
    error[cycle]: these steps wait for each other: a → a
     --> x.yaml:4:10
      |
    4 |   - {id: a, needs: [a], assert: {that: true}}
      |          ^          - `a` waits for `a`
    ");
}

#[test]
fn a_long_chain_is_no_circle_and_quickly_judged() {
    let steps: String = (0..20_000)
        .map(|n| {
            format!("  - {{id: s{n}, assert: {{that: {}}}}}\n", if n == 0 { "true".into() } else { format!("steps.s{}.value", n / 2) })
        })
        .collect();
    assert_eq!(problems("", &steps), "");
}

#[test]
fn thousands_of_mistakes_are_told_without_delay() {
    let unknown: String = (0..3000).map(|n| format!("  - {{id: s{n}, needs: [x{n}], assert: {{that: steps.y{n}.value}}}}\n")).collect();
    assert!(problems("", &unknown).ends_with("… and 5800 more, not shown"));
    let chain: String = (1..3000).map(|n| format!("  - {{id: s{n}, assert: {{that: true}}}}\n")).collect();
    let circle = problems("", &format!("  - {{id: s0, needs: [s2999], assert: {{that: true}}}}\n{chain}"));
    insta::assert_snapshot!(circle.lines().next().unwrap_or_default(), @"error[cycle]: these steps wait for each other: s0 → s2999 → s2998 → s2997 → s2996 → s2995 → s2994 → s2993 → s2992 → s2991 → … → s9 → s8 → s7 → s6 → s5 → s4 → s3 → s2 → s1 → s0");
    let (long, longer) = ("a".repeat(1_000_000), "b".repeat(1_000_000));
    let drawn = problems("", &format!("  - {{id: {long}, needs: [{longer}], assert: {{that: true}}}}\n"));
    assert!(drawn.contains("unknown-step") && drawn.len() < 10_000, "{} bytes", drawn.len());
}

#[test]
fn a_result_is_found_behind_many_needs() {
    let steps: String = (0..1500)
        .map(|n: usize| {
            let needs: Vec<String> = (n.saturating_sub(50)..n).map(|need| format!("s{need}")).collect();
            let read = if n == 0 { "true".into() } else { format!("steps.s{}.value", n / 3) };
            format!("  - {{id: s{n}, needs: [{}], assert: {{that: {read}}}}}\n", needs.join(", "))
        })
        .collect();
    assert_eq!(problems("", &steps), "");
}

#[test]
fn ids_are_unique_in_all_parts() {
    let steps = "  - {id: a, assert: {that: true}}\nalways:\n  - {id: a, assert: {that: true}}\n  - {id: a, asert: {that: true}}\n";
    insta::assert_snapshot!(problems("", steps), @r"
    error[duplicate-id]: two steps have the id `a`
     --> x.yaml:6:10
      |
    4 |   - {id: a, assert: {that: true}}
      |          - first here
    5 | always:
    6 |   - {id: a, assert: {that: true}}
      |          ^ again

    error[duplicate-id]: two steps have the id `a`
     --> x.yaml:7:10
      |
    4 |   - {id: a, assert: {that: true}}
      |          - first here
    ...
    7 |   - {id: a, asert: {that: true}}
      |          ^ again

    error[unknown-key]: unknown key `asert`
     --> x.yaml:7:13
      |
    7 |   - {id: a, asert: {that: true}}
      |             ^^^^^
      |
      = help: did you mean `assert`?
      = help: allowed: id, name, description, needs, when, for_each, as, max_parallel, timeout, retry, severity, continue_on_error, confirm, done_when, idempotent, undo, outputs, tags, sql, sql_batch, snapshot, import, pg_dump, sqlite_backup, verify_backup, pg_restore, prune_backups, env_check, env_backup, shell, http, manual, assert, notify, playbook
    ");
}

#[test]
fn a_broken_step_is_no_unknown_step() {
    let steps = "  - {id: a, assert: {that: true}, tiemout: 5s}\n  - {id: b, sql: {qurey: SELECT 1}}\n  - {id: c, needs: [a, b, d], assert: {that: steps.b.value == params.x}}\n";
    insta::assert_snapshot!(problems("", steps), @r"
    error[unknown-key]: unknown key `tiemout`
     --> x.yaml:4:35
      |
    4 |   - {id: a, assert: {that: true}, tiemout: 5s}
      |                                   ^^^^^^^
      |
      = help: did you mean `timeout`?
      = help: allowed: id, name, description, needs, when, for_each, as, max_parallel, timeout, retry, severity, continue_on_error, confirm, done_when, idempotent, undo, outputs, tags, sql, sql_batch, snapshot, import, pg_dump, sqlite_backup, verify_backup, pg_restore, prune_backups, env_check, env_backup, shell, http, manual, assert, notify, playbook

    error[unknown-key]: unknown key `qurey`
     --> x.yaml:5:19
      |
    5 |   - {id: b, sql: {qurey: SELECT 1}}
      |                   ^^^^^
      |
      = help: did you mean `query`?
      = help: allowed: query, exec, file, mode, connection, transaction, isolation, expect, sample, lock_timeout, statement_timeout, ledger

    error[unknown-step]: no step has the id `d`
     --> x.yaml:6:27
      |
    6 |   - {id: c, needs: [a, b, d], assert: {that: steps.b.value == params.x}}
      |                           ^
      |
      = help: known: a, b, c

    error[undeclared]: no parameter is called `x`
     --> x.yaml:6:63
      |
    6 |   - {id: c, needs: [a, b, d], assert: {that: steps.b.value == params.x}}
      |                                                               ^^^^^^^^
      |
      = help: no parameter is declared
    ");
}
