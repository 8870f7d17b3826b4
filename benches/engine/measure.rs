//! Taking turns, medians, and the peak memory of a program.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The columns of what [`Contest::hold`] gives.
pub const HEADING: &str = "scenario            runbook     baseline    ratio  (range)         goal    memory     goal";

const PROBE: &str = "--probe-memory";

/// What a scenario should stay under.
pub struct Goal {
    ratio: f64,
    megabytes: Option<u64>,
}

impl Goal {
    /// At most this many times the baseline's time.
    pub fn at_most(ratio: f64) -> Self {
        Self { ratio, megabytes: None }
    }

    /// And at most this much memory.
    pub fn and_megabytes(self, megabytes: u64) -> Self {
        Self { megabytes: Some(megabytes), ..self }
    }
}

/// Something whose time is taken.
pub type Runner = Box<dyn Fn()>;

/// A program that must succeed, as a [`Runner`].
pub fn program(command: impl Fn() -> Command + 'static) -> Runner {
    Box::new(move || run(&mut command()))
}

/// runbook and what it is compared with.
pub struct Contest {
    /// How often each is run.
    pub rounds: usize,
    /// What to stay under.
    pub goal: Goal,
    /// runbook's own command, made anew for each round.
    pub subject: Box<dyn Fn() -> Command>,
    /// What it prints when it has done all of its work: fast because idle does not count.
    pub evidence: String,
    /// The other side, or why there is none.
    pub baseline: Result<Runner, String>,
}

impl Contest {
    /// Runs both sides in turn and tells the outcome in one line.
    pub fn hold(self, name: &str) -> String {
        self.demand_evidence();
        let (mut subject, mut baseline) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let mut command = (self.subject)();
            subject.push(time(|| run(&mut command)));
            if let Ok(runner) = &self.baseline {
                baseline.push(time(runner));
            }
        }
        let ratio = match &self.baseline {
            Ok(_) => compared(&subject, &baseline, self.goal.ratio),
            Err(reason) => format!("{reason:<45}"),
        };
        let memory = peak_megabytes(&(self.subject)());
        let memory_goal = self.goal.megabytes.map(|limit| verdict(memory <= limit, &format!("{limit} MB"))).unwrap_or_default();
        format!("{name:<18} {:>9}  {ratio} {memory:>5} MB {memory_goal:>12}", shown(median(&subject)))
    }

    fn demand_evidence(&self) {
        let mut command = (self.subject)();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("runbook starts");
        let lines = BufReader::new(child.stdout.take().expect("piped just above")).split(b'\n').map_while(Result::ok);
        let found = lines.filter(|line| String::from_utf8_lossy(line).contains(&self.evidence)).count() > 0;
        let status = child.wait().expect("a child can be waited for");
        assert!(found && status.success(), "{status}, and {:?} printed: {found}: {command:?}", self.evidence);
    }
}

fn compared(subject: &[Duration], baseline: &[Duration], goal: f64) -> String {
    let ratio = median(subject).as_secs_f64() / median(baseline).as_secs_f64();
    let each = subject.iter().zip(baseline).map(|(one, other)| one.as_secs_f64() / other.as_secs_f64());
    let (low, high) = each.fold((f64::INFINITY, 0_f64), |(low, high), ratio| (low.min(ratio), high.max(ratio)));
    let goal = verdict(ratio <= goal, &format!("{goal:.1}"));
    format!("{:>9} {ratio:>8.2}  ({low:.2}-{high:.2}) {goal:>12}", shown(median(baseline)))
}

/// A goal and whether it is met.
pub fn verdict(met: bool, goal: &str) -> String {
    format!("{goal} {}", if met { "met" } else { "MISSED" })
}

fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The one in the middle.
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// How long something takes.
pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(status.success(), "{status}: {command:?}");
}

/// The most memory a program held, its own children apart: the kernel tells it only of all
/// children so far together, so another process of this program has the one child.
pub fn peak_megabytes(command: &Command) -> u64 {
    let mut probe = Command::new(std::env::current_exe().expect("a running program"));
    probe.arg(PROBE).arg(command.get_program()).args(command.get_args());
    probe.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = probe.stderr(Stdio::inherit()).output().expect("the probe starts");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().unwrap_or_else(|error| panic!("{error}: the probe says {text:?}"))
}

/// Whether this process was started by [`peak_megabytes`].
pub fn is_memory_probe(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|argument| argument == PROBE)
}

/// Runs the program given and prints its peak memory.
pub fn probe_memory(arguments: &[String]) -> ! {
    let mut command = Command::new(&arguments[1]);
    run(command.args(&arguments[2..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).expect("a known argument");
    println!("{}", usage.max_rss() / 1024);
    std::process::exit(0);
}
