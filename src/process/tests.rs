//! Real children: their output, their end, and what they leave behind.

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::output::OutputOptions;
use crate::secret::Redactor;

struct Bench {
    directory: TempDir,
    processes: Processes,
    output: Output,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = OutputOptions {
            directory: directory.path().join("output"),
            step: "step".into(),
            attempt: 1,
            max_bytes: 1 << 20,
            redactor: Redactor::default(),
            live: None,
        };
        let environment = [("PATH", "/usr/bin:/bin"), ("FROM_RUN", "inherited")].map(|(name, value)| (name.into(), value.into()));
        // Waits like a guard but ends nobody: these tests are about runs that end in order.
        let guard = guard::Start { program: "/bin/sh".into(), arguments: ["-c", "read -r line"].map(Into::into).to_vec() };
        let processes = Processes::new("test", environment, guard);
        Self { directory, processes, output: Output::new(options), stop: CancellationToken::new() }
    }

    fn command(&self, program: Program) -> Command {
        Command { program, environment: Vec::new(), without: Vec::new(), directory: self.directory.path().to_owned(), grace: GRACE }
    }

    fn script(&self, text: &str) -> Command {
        self.command(Program::Script(Shell::Sh, text.into()))
    }

    async fn run(&self, command: Command) -> Result<Ended, ProcessError> {
        self.processes.run(command, &self.output, &self.stop).await
    }

    async fn sh(&self, text: &str) -> Ended {
        self.run(self.script(text)).await.unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn until_exists(&self, name: &str) {
        while !self.file(name).exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let bench = Bench::new();
    let ended = bench.sh("echo out; echo err >&2; exit 3").await;
    assert_eq!(ended.exit, Exit::Code(3));
    assert_eq!((ended.captured.stdout.as_str(), ended.captured.stderr.as_str()), ("out", "err"));
    assert!(!ended.stopped && !ended.left_behind);
    assert_eq!(ended.exit.to_string(), "exit code 3");
}

#[tokio::test]
async fn a_signal_is_told_by_name() {
    let ended = Bench::new().sh("kill -SEGV $$").await;
    assert_eq!(ended.exit, Exit::Signal(11));
    assert_eq!(ended.exit.to_string(), "ended by SIGSEGV");
}

#[tokio::test]
async fn scripts_stop_at_the_first_failing_command() {
    let bench = Bench::new();
    let ended = bench.sh("false\necho unreached").await;
    assert_eq!((ended.exit, ended.captured.stdout.as_str()), (Exit::Code(1), ""));
    let bash = bench.run(bench.command(Program::Script(Shell::Bash, "false | true\necho unreached".into()))).await.unwrap();
    assert_eq!((bash.exit, bash.captured.stdout.as_str()), (Exit::Code(1), ""));
}

#[tokio::test]
async fn each_argument_stays_one_argument() {
    let bench = Bench::new();
    let argv = ["printf", "<%s>", "a b", "$HOME; x", "", "*"].map(String::from).to_vec();
    let ended = bench.run(bench.command(Program::Argv(argv))).await.unwrap();
    assert_eq!(ended.captured.stdout, "<a b><$HOME; x><><*>");
}

#[tokio::test]
async fn children_see_the_given_environment_and_no_input() {
    let bench = Bench::new();
    let mut command = bench.script("env | grep -v -e ^_= -e ^PWD= -e ^SHLVL= -e ^OLDPWD= | sort; cat; pwd");
    command.environment.push(("TOKEN".into(), Secret::new("s3cret")));
    let ended = bench.run(command).await.unwrap();
    let expected = format!(
        "FROM_RUN=inherited\nPATH=/usr/bin:/bin\nRUNBOOK_CHILD_OF=test.{}\nTOKEN=s3cret\n{}",
        std::process::id(),
        bench.directory.path().display()
    );
    assert_eq!(ended.captured.stdout, expected);
}

#[tokio::test]
async fn a_program_is_found_in_the_commands_own_path() {
    let bench = Bench::new();
    std::fs::write(bench.file("mytool"), "#!/bin/sh\necho mine\n").unwrap();
    std::fs::set_permissions(bench.file("mytool"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = bench.command(Program::Argv(vec!["mytool".into()]));
    command.environment.push(("PATH".into(), Secret::new(bench.directory.path().to_str().unwrap())));
    assert_eq!(bench.run(command).await.unwrap().captured.stdout, "mine");
    let relative = bench.command(Program::Argv(vec!["./mytool".into()]));
    assert_eq!(bench.run(relative).await.unwrap().captured.stdout, "mine");
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let bench = Bench::new();
    let say = async |command: Command| {
        bench.run(command).await.unwrap_err().to_string().replace(bench.directory.path().to_str().unwrap(), "[DIR]")
    };
    let argv = |program: &str| bench.command(Program::Argv(vec![program.into()]));
    insta::assert_snapshot!(say(argv("no-such-tool")).await, @"there is no program `no-such-tool` in PATH (/usr/bin:/bin)");
    insta::assert_snapshot!(say(argv("./no-such-tool")).await, @"there is no program `./no-such-tool` in `[DIR]`");
    std::fs::write(bench.file("plain"), "text").unwrap();
    insta::assert_snapshot!(say(argv("./plain")).await, @"cannot start `./plain`: Permission denied (os error 13)");
    let nowhere = Command { directory: bench.file("nowhere"), ..argv("sh") };
    insta::assert_snapshot!(say(nowhere).await, @"there is no directory `[DIR]/nowhere` to run in");
}

#[tokio::test]
async fn stopping_asks_the_whole_group_first() {
    let bench = Bench::new();
    let command = bench.script("trap 'echo cleaned up; exit 7' TERM; sleep 1000 & touch ready; wait");
    let (ended, ()) = tokio::join!(bench.run(command), async {
        bench.until_exists("ready").await;
        bench.stop.cancel();
    });
    let ended = ended.unwrap();
    assert_eq!((ended.exit, ended.captured.stdout.as_str()), (Exit::Code(7), "cleaned up"));
    assert!(ended.stopped && !ended.left_behind);
}

#[tokio::test]
async fn stopping_insists_after_the_grace() {
    let bench = Bench::new();
    let mut command = bench.script("trap '' TERM; touch ready; while :; do sleep 1000; done");
    command.grace = Duration::from_millis(20);
    let (ended, ()) = tokio::join!(bench.run(command), async {
        bench.until_exists("ready").await;
        bench.stop.cancel();
    });
    let ended = ended.unwrap();
    assert_eq!(ended.exit, Exit::Signal(9));
    assert!(ended.stopped);
}

#[tokio::test]
async fn a_dropped_run_ends_its_process() {
    let bench = Bench::new();
    let command = bench.script("trap 'touch stopped; exit' TERM; touch ready; while :; do sleep 0.01; done");
    tokio::select! {
        _ = bench.run(command) => panic!("it would run forever"),
        () = bench.until_exists("ready") => {}
    }
    bench.until_exists("stopped").await;
}

#[tokio::test]
async fn what_stays_in_the_background_is_stopped_and_told() {
    let bench = Bench::new();
    let ended = bench.sh("sleep 1000 & echo $! > pid; echo started").await;
    assert_eq!((ended.exit, ended.captured.stdout.as_str()), (Exit::Code(0), "started"));
    assert!(ended.left_behind && !ended.stopped);
    let pid = std::fs::read_to_string(bench.file("pid")).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(" Z "), "it still runs: {stat}");
}

#[tokio::test]
async fn a_daemon_that_holds_the_pipe_does_not_hold_the_step() {
    let bench = Bench::new();
    let ended = bench.sh("setsid sleep 5 & echo started").await;
    assert_eq!((ended.exit, ended.captured.stdout.as_str()), (Exit::Code(0), "started"));
    assert!(!ended.left_behind, "it left the group on purpose");
}

#[tokio::test]
async fn late_output_of_a_short_background_process_is_kept() {
    let bench = Bench::new();
    let command = bench.command(Program::Script(Shell::Bash, "echo piped > >(sed 's/^/late: /')".into()));
    let ended = bench.run(command).await.unwrap();
    assert_eq!(ended.captured.stdout, "late: piped");
    assert!(!ended.left_behind);
}
