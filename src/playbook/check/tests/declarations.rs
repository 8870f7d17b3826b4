//! What is declared at the top and used below it.

use super::*;

#[test]
fn connections_and_parameters_are_checked() {
    let top = r#"
params:
  a: {type: enum}
  b: {type: string, values: [x], min: 1}
  c: {type: enum, values: [x], default: y}
  d-e: {type: number, min: 3, max: 2, required: true, default: 1}
  f: {type: string, pattern: "[a"}
environment: "{{ env.ENVIRONMENT }}"
connections: {one: {url: "{{ steps.a.value }}"}, two: {url: "{{ secrets.x }}"}}
defaults: {retry: {on: [transeint, "40001", "57P"]}}
"#;
    let steps = r#"
  - {id: a, sql: {query: SELECT 1}}
  - {id: b, sql: {query: SELECT 1, connection: tow}}
  - {id: c, as: steps, assert: {that: "true"}}
  - {id: d, for_each: [1], as: steps, assert: {that: "true"}}
"#;
    insta::assert_snapshot!(problems(top, steps), @r#"
    error[parameter]: the enum `a` has no `values`
     --> x.yaml:5:3
      |
    5 |   a: {type: enum}
      |   ^
      |
      = help: list what it may be: `values: [staging, production]`

    error[parameter]: `b` has `values`, but its type is not `enum`
     --> x.yaml:6:3
      |
    6 |   b: {type: string, values: [x], min: 1}
      |   ^
      |
      = help: write `type: enum`, or delete `values`

    error[parameter]: `b` has `min` or `max`, but is not a number
     --> x.yaml:6:3
      |
    6 |   b: {type: string, values: [x], min: 1}
      |   ^
      |
      = help: they hold for `integer` and `number`

    error[parameter]: the `default` of `c` is not one of its `values`
     --> x.yaml:7:3
      |
    7 |   c: {type: enum, values: [x], default: y}
      |   ^
      |
      = help: values: x

    error[bad-name]: `d-e` can't be used as a name in expressions
     --> x.yaml:8:3
      |
    8 |   d-e: {type: number, min: 3, max: 2, required: true, default: 1}
      |   ^^^
      |
      = help: names have letters, digits and `_`, and begin with a letter or `_`

    error[parameter]: the `min` of `d-e` is greater than its `max`
     --> x.yaml:8:3
      |
    8 |   d-e: {type: number, min: 3, max: 2, required: true, default: 1}
      |   ^^^
      |
      = help: no value fits

    error[parameter]: `d-e` is `required` and has a `default`
     --> x.yaml:8:3
      |
    8 |   d-e: {type: number, min: 3, max: 2, required: true, default: 1}
      |   ^^^
      |
      = help: a default is taken when nothing is given; delete one of the two

    error[parameter]: the `pattern` of `f` is not a regular expression: unclosed character class
     --> x.yaml:9:3
      |
    9 |   f: {type: string, pattern: "[a"}
      |   ^
      |
      = help: it is written as in Rust's regex and matches the whole text

    error[not-known-here]: `env.ENVIRONMENT` can't be read here
      --> x.yaml:10:18
       |
    10 | environment: "{{ env.ENVIRONMENT }}"
       |                  ^^^^^^^^^^^^^^^
       |
       = help: `environment` may read `params`

    error[not-known-here]: `steps.a.value` can't be read here
      --> x.yaml:11:30
       |
    11 | connections: {one: {url: "{{ steps.a.value }}"}, two: {url: "{{ secrets.x }}"}}
       |                              ^^^^^^^^^^^^^
       |
       = help: a connection may read `params`, `secrets` and `env`

    error[undeclared]: no secret is called `x`
      --> x.yaml:11:65
       |
    11 | connections: {one: {url: "{{ steps.a.value }}"}, two: {url: "{{ secrets.x }}"}}
       |                                                                 ^^^^^^^^^
       |
       = help: no secret is declared

    error[invalid-value]: `transeint` is neither a class of errors nor the beginning of an SQLSTATE
      --> x.yaml:12:25
       |
    12 | defaults: {retry: {on: [transeint, "40001", "57P"]}}
       |                         ^^^^^^^^^
       |
       = help: did you mean `transient`?
       = help: known: any, connection, expectation, http, process, timeout, transient

    error[unknown-connection]: it is not said on which connection
      --> x.yaml:15:13
       |
    15 |   - {id: a, sql: {query: SELECT 1}}
       |             ^^^
       |
       = help: add `connection:` (one, two), or call one `main`

    error[unknown-connection]: no connection is called `tow`
      --> x.yaml:16:48
       |
    16 |   - {id: b, sql: {query: SELECT 1, connection: tow}}
       |                                                ^^^
       |
       = help: did you mean `two`?
       = help: known: one, two

    error[bad-name]: `as` names the item of `for_each`, which this step does not have
      --> x.yaml:17:17
       |
    17 |   - {id: c, as: steps, assert: {that: "true"}}
       |                 ^^^^^

    error[bad-name]: `steps` has a meaning of its own in expressions
      --> x.yaml:18:32
       |
    18 |   - {id: d, for_each: [1], as: steps, assert: {that: "true"}}
       |                                ^^^^^
    "#);
    insta::assert_snapshot!(problems("", "  - {id: a, sql: {query: SELECT 1}}\n  - {id: b, sql: {query: SELECT 1}}\n"), @r#"
    error[unknown-connection]: a database is needed here, but no connection is declared
     --> x.yaml:4:13
      |
    4 |   - {id: a, sql: {query: SELECT 1}}
      |             ^^^
      |
      = help: declare one: `connections: {main: {url: "{{ env.DATABASE_URL }}"}}`
    "#);
    assert_eq!(problems(CONNECTION, "  - {id: a, sql: {query: SELECT 1}}\n"), "");
}
