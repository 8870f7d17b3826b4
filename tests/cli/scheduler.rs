//! Order and bounds: the scheduler against a model on random graphs, random playbooks run
//! for real, and every beginning of a recorded history resumed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use runbook::engine::scheduler::{Scheduler, Task};
use runbook::journal::{RunPhase, RunState, RunStatus};

use crate::crash::history::{History, sqlite};
use crate::environment::TestEnv;

/// A step: what it needs, and how many instances it has with how many at a time.
#[derive(Debug, Clone)]
struct Step {
    needs: Vec<usize>,
    group: Option<(usize, usize)>,
}

fn graphs() -> impl Strategy<Value = Vec<Step>> {
    (1..25_usize).prop_flat_map(|size| {
        (0..size)
            .map(|index| {
                let needs = proptest::collection::btree_set(0..index.max(1), 0..=index.min(4));
                let group = proptest::option::weighted(0.25, (0..6_usize, 1..4_usize));
                (needs, group)
                    .prop_map(move |(needs, group)| Step { needs: needs.into_iter().filter(|need| *need < index).collect(), group })
            })
            .collect::<Vec<_>>()
    })
}

/// What the scheduler must know, kept in the plainest way.
struct Model<'a> {
    graph: &'a [Step],
    over: BTreeSet<usize>,
    over_instances: BTreeSet<(usize, usize)>,
    /// Groups that were expanded and are not over.
    open: BTreeSet<usize>,
    running: Vec<Task>,
}

impl<'a> Model<'a> {
    fn new(graph: &'a [Step]) -> Self {
        Self { graph, over: BTreeSet::new(), over_instances: BTreeSet::new(), open: BTreeSet::new(), running: Vec::new() }
    }

    fn instances_left(&self, step: usize) -> Vec<usize> {
        let count = self.graph[step].group.map_or(0, |(count, _)| count);
        (0..count).filter(|instance| !self.over_instances.contains(&(step, *instance))).collect()
    }

    /// Everything that may start now, in the order written.
    fn may_start(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (step, about) in self.graph.iter().enumerate() {
            let runs = |task: &Task| self.running.contains(task);
            if self.open.contains(&step) {
                let (_, limit) = about.group.unwrap();
                let waiting =
                    self.instances_left(step).into_iter().map(|instance| Task { step, instance: Some(instance) }).find(|task| !runs(task));
                let busy = self.running.iter().filter(|task| task.step == step).count();
                tasks.extend(waiting.filter(|_| busy < limit));
            } else if !self.over.contains(&step)
                && !runs(&Task { step, instance: None })
                && about.needs.iter().all(|need| self.over.contains(need))
            {
                tasks.push(Task { step, instance: None });
            }
        }
        tasks
    }

    fn scheduler(&self) -> Scheduler {
        let needs = self.graph.iter().enumerate().map(|(index, step)| (index, step.needs.clone()));
        Scheduler::from_needs(needs, |index| self.over.contains(&index))
    }
}

/// What happens next in a simulated run.
#[derive(Debug, Clone)]
enum Happening {
    /// One of the running ends.
    End(Option<prop::sample::Index>),
    /// A started one is given back, as before a question.
    PutBack,
    /// The process dies; another one goes on from what is recorded.
    Crash,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        12 => any::<prop::sample::Index>().prop_map(|which| Happening::End(Some(which))),
        2 => Just(Happening::PutBack),
        1 => Just(Happening::Crash),
    ];
    proptest::collection::vec(one, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_scheduler_does_as_its_model(graph in graphs(), max_parallel in 1..6_usize, happenings in happenings()) {
        let mut model = Model::new(&graph);
        let mut scheduler = model.scheduler();
        let mut happenings = happenings.into_iter();
        loop {
            while model.running.len() < max_parallel {
                let expected = model.may_start().first().copied();
                let task = scheduler.next_task();
                prop_assert_eq!(task, expected, "running {:?}", model.running);
                let Some(task) = task else { break };
                if task.instance.is_none() && let Some((_, limit)) = graph[task.step].group {
                    let left = model.instances_left(task.step);
                    if left.is_empty() {
                        scheduler.finished(task.step);
                        model.over.insert(task.step);
                    } else {
                        scheduler.expand(task.step, left, limit);
                        model.open.insert(task.step);
                    }
                    continue;
                }
                model.running.push(task);
            }
            if model.running.is_empty() {
                break;
            }
            match happenings.next().unwrap_or(Happening::End(None)) {
                Happening::End(which) => {
                    let task = model.running.remove(which.map_or(0, |which| which.index(model.running.len())));
                    match task.instance {
                        None => {
                            scheduler.finished(task.step);
                            model.over.insert(task.step);
                        }
                        Some(instance) => {
                            model.over_instances.insert((task.step, instance));
                            let last = model.instances_left(task.step).is_empty();
                            prop_assert_eq!(scheduler.instance_finished(task.step), last);
                            if last {
                                scheduler.finished(task.step);
                                model.open.remove(&task.step);
                                model.over.insert(task.step);
                            }
                        }
                    }
                }
                Happening::PutBack => {
                    // Only the last one: the engine asks before it starts the next.
                    if let Some(task) = model.running.pop() {
                        scheduler.put_back(task);
                        prop_assert!(scheduler.take(task));
                        prop_assert!(!scheduler.take(task), "it can be taken once");
                        scheduler.put_back(task);
                    }
                }
                Happening::Crash => {
                    model.running.clear();
                    model.open.clear();
                    scheduler = model.scheduler();
                }
            }
        }
        prop_assert!(scheduler.is_done());
        prop_assert_eq!(model.over.len(), graph.len(), "everything is over");
    }
}

/// A graph as a playbook whose steps note their beginning and end.
fn playbook(graph: &[Step], max_parallel: usize) -> String {
    let mut text = format!("version: 1\nname: random\nmax_parallel: {max_parallel}\nsteps:\n");
    for (index, step) in graph.iter().enumerate() {
        let needs: Vec<String> = step.needs.iter().map(|need| format!("s{need}")).collect();
        text += &format!("  - id: s{index}\n    needs: [{}]\n    idempotent: true\n", needs.join(", "));
        if let Some((count, limit)) = step.group {
            let items: Vec<String> = (0..count).map(|item| item.to_string()).collect();
            text += &format!("    for_each: [{}]\n    max_parallel: {limit}\n", items.join(", "));
            text += &format!(
                "    shell: {{run: 'echo \"+ {index} $I\" >> log; sleep 0.0$((I + 1)); echo \"- {index} $I\" >> log', env: {{I: \"{{{{ item }}}}\"}}}}\n"
            );
        } else {
            text += &format!("    shell: {{run: 'echo \"+ {index}\" >> log; sleep 0.0{}; echo \"- {index}\" >> log'}}\n", index % 4);
        }
    }
    text
}

/// No step begins before those it needs have ended, and no bound is passed.
fn check_log(graph: &[Step], max_parallel: usize, log: &str) {
    let mut running: BTreeMap<usize, usize> = BTreeMap::new();
    let mut ended: BTreeMap<usize, usize> = BTreeMap::new();
    let is_over = |step: usize, ended: &BTreeMap<usize, usize>| {
        ended.get(&step).copied().unwrap_or(0) >= graph[step].group.map_or(1, |(count, _)| count)
    };
    for line in log.lines() {
        let mut words = line.split(' ');
        let sign = words.next().unwrap();
        let step: usize = words.next().unwrap().parse().unwrap();
        let count = running.entry(step).or_default();
        if sign == "+" {
            *count += 1;
            let limit = graph[step].group.map_or(1, |(_, limit)| limit);
            assert!(*count <= limit, "{line}: more than {limit} of one step\n{log}");
            assert!(graph[step].needs.iter().all(|need| is_over(*need, &ended)), "{line}: before what it needs\n{log}");
        } else {
            *count -= 1;
            *ended.entry(step).or_default() += 1;
        }
        assert!(running.values().sum::<usize>() <= max_parallel, "{line}: more than {max_parallel}\n{log}");
    }
    assert!((0..graph.len()).all(|step| is_over(step, &ended)), "not everything ran\n{log}");
}

#[test]
fn random_playbooks_keep_order_and_bounds() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..6 {
        let (graph, max_parallel) = (graphs(), 1..5_usize).new_tree(&mut runner).unwrap().current();
        let env = TestEnv::new();
        env.write("random.yaml", playbook(&graph, max_parallel));
        env.write("log", "");
        env.runbook(["run", "random.yaml"]).run().exits(0);
        check_log(&graph, max_parallel, &env.read("log"));
    }
}

/// Whatever a process has recorded when it dies, the next one goes on from there: each
/// beginning of a history is legal, folds, and is resumed to the same end, without
/// running again what it calls done.
#[test]
fn every_beginning_of_a_history_can_be_resumed() {
    const STEPS: &str = "
version: 1
name: prefixes
steps:
  - {id: one, idempotent: true, shell: {run: echo one >> log}}
  - {id: look, needs: [one], assert: {that: steps.one.exit_code == 0}, outputs: {fine: value}}
  - {id: two, needs: [one], done_when: {shell: {run: test -e two}}, shell: {run: echo two >> log; touch two}}
  - {id: each, needs: [one], for_each: [a, b, c], max_parallel: 2, idempotent: true, shell: {run: 'echo \"each[$I]\" >> log', env: {I: \"{{ index }}\"}}}
  - {id: flaky, needs: [one], idempotent: true, retry: {max: 9, delay: 1ms, on: [any]}, shell: {run: echo try >> tries; test $(wc -l < tries) -ge 3; echo flaky >> log}}
  - {id: tolerated, needs: [one], continue_on_error: true, assert: {that: \"false\"}}
  - {id: left_out, needs: [look], when: not steps.look.outputs.fine, shell: {run: echo left_out >> log}}
  - {id: agreed, needs: [two, each, flaky, tolerated], confirm: Shall it go on?}
  - {id: three, idempotent: true, confirm: Really?, shell: {run: echo three >> log}}
on_success:
  - {id: celebrate, idempotent: true, shell: {run: echo celebrate >> log}}
always:
  - {id: tidy, idempotent: true, shell: {run: echo tidy >> log}}
";
    let env = TestEnv::new();
    env.write("prefixes.yaml", STEPS);
    env.runbook(["run", "prefixes.yaml", "--yes"]).run().exits(0);
    let whole = History::only(&env);
    let journal = std::fs::read(env.state("runbook/journal.db")).unwrap();
    for length in 1..whole.events.len() {
        let beginning = &whole.events[..length];
        let state = RunState::replay(beginning).unwrap_or_else(|error| panic!("{length} events: {error}")).unwrap();
        assert_eq!(state.phase, RunPhase::Running);
        let done = History { run: whole.run.clone(), events: beginning.to_vec() }.done();

        for file in ["two", "log", "tries"] {
            let _ = std::fs::remove_file(env.path(file));
        }
        for name in ["journal.db-wal", "journal.db-shm"] {
            let _ = std::fs::remove_file(env.state("runbook").join(name));
        }
        std::fs::write(env.state("runbook/journal.db"), &journal).unwrap();
        sqlite(&env, &format!("DELETE FROM event WHERE sequence >= {length}"));
        if done.iter().any(|step| step == "two") {
            env.write("two", "");
        }
        env.runbook(["resume"]).run().exits(0);

        let history = History::only(&env);
        assert_eq!(history.phase(), RunPhase::Finished(RunStatus::Done), "{length} events");
        assert!(history.events.starts_with(beginning), "what is recorded stays");
        let again = std::fs::read_to_string(env.path("log")).unwrap_or_default();
        let again: Vec<&str> = again.lines().filter(|line| done.iter().any(|step| step == line)).collect();
        assert!(again.is_empty(), "after {length} events {again:?} ran again although they were done");
        for step in ["one", "look", "two", "each[0]", "each[1]", "each[2]", "each", "flaky", "agreed", "three"] {
            assert!(history.done().iter().any(|done| done == step), "after {length} events {step} is not done in the end");
        }
        env.runbook(["journal", "verify"]).run().exits(0);
    }
}
