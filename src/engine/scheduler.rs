//! Which step may start next: pure bookkeeping over one phase of a plan.
//!
//! Knows dependencies, order of writing and the bounds of `for_each`; it does not know
//! time, conditions, journals or tasks.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::journal::Phase;
use crate::plan::Plan;

/// Something to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Task {
    /// Index into [`Plan::steps`].
    pub step: usize,
    /// One instance of a `for_each` step; `None`: the step itself.
    pub instance: Option<usize>,
}

/// The instances of a `for_each` step.
#[derive(Debug)]
struct Group {
    waiting: VecDeque<usize>,
    running: usize,
    limit: usize,
}

/// Hands out the steps of one phase, in the order written wherever there is a choice.
#[derive(Debug)]
pub struct Scheduler {
    unmet: HashMap<usize, usize>,
    dependents: HashMap<usize, Vec<usize>>,
    ready: BTreeSet<usize>,
    groups: HashMap<usize, Group>,
}

impl Scheduler {
    /// The phase's steps that are not over yet.
    pub fn new(plan: &Plan, phase: Phase, is_over: impl Fn(usize) -> bool) -> Self {
        let needs = plan.steps.iter().enumerate().filter(|(_, step)| step.phase == phase).map(|(index, step)| {
            let needs: Vec<usize> = step.needs.iter().map(|need| need.step).collect();
            (index, needs)
        });
        Self::from_needs(needs, is_over)
    }

    /// The same over bare indices.
    pub fn from_needs(needs: impl IntoIterator<Item = (usize, Vec<usize>)>, is_over: impl Fn(usize) -> bool) -> Self {
        let mut scheduler = Self { unmet: HashMap::new(), dependents: HashMap::new(), ready: BTreeSet::new(), groups: HashMap::new() };
        for (index, needs) in needs {
            if is_over(index) {
                continue;
            }
            let open: BTreeSet<usize> = needs.into_iter().filter(|need| !is_over(*need)).collect();
            if open.is_empty() {
                scheduler.ready.insert(index);
            }
            scheduler.unmet.insert(index, open.len());
            for need in open {
                scheduler.dependents.entry(need).or_default().push(index);
            }
        }
        scheduler
    }

    /// The next step or instance to start, if any may start now.
    pub fn next_task(&mut self) -> Option<Task> {
        let group = self
            .groups
            .iter_mut()
            .filter(|(_, group)| group.running < group.limit && !group.waiting.is_empty())
            .min_by_key(|(step, _)| **step);
        let first = self.ready.first().copied();
        match group {
            Some((step, group)) if first.is_none_or(|first| *step < first) => {
                group.running += 1;
                let instance = group.waiting.pop_front();
                Some(Task { step: *step, instance })
            }
            _ => self.ready.pop_first().map(|step| Task { step, instance: None }),
        }
    }

    /// Gives a started step back, to be handed out again.
    pub fn put_back(&mut self, task: Task) {
        match (task.instance, self.groups.get_mut(&task.step)) {
            (Some(instance), Some(group)) => {
                group.running -= 1;
                group.waiting.push_front(instance);
            }
            _ => {
                self.ready.insert(task.step);
            }
        }
    }

    /// Takes a step that was put back out of the queue, without starting it; `false`
    /// when it is not there.
    pub fn take(&mut self, task: Task) -> bool {
        match (task.instance, self.groups.get_mut(&task.step)) {
            (Some(instance), Some(group)) => {
                let position = group.waiting.iter().position(|waiting| *waiting == instance);
                position.is_some_and(|position| {
                    group.running += 1;
                    group.waiting.remove(position).is_some()
                })
            }
            _ => self.ready.remove(&task.step),
        }
    }

    /// Replaces a handed-out step by its instances, at most `limit` of them at a time.
    pub fn expand(&mut self, step: usize, instances: impl IntoIterator<Item = usize>, limit: usize) {
        self.groups.insert(step, Group { waiting: instances.into_iter().collect(), running: 0, limit });
    }

    /// An instance is over; `true` when it was the last.
    pub fn instance_finished(&mut self, step: usize) -> bool {
        let Some(group) = self.groups.get_mut(&step) else { return false };
        group.running -= 1;
        let last = group.running == 0 && group.waiting.is_empty();
        if last {
            self.groups.remove(&step);
        }
        last
    }

    /// A step is over: what needed it may become ready.
    pub fn finished(&mut self, step: usize) {
        self.unmet.remove(&step);
        for dependent in self.dependents.remove(&step).unwrap_or_default() {
            if let Some(unmet) = self.unmet.get_mut(&dependent) {
                *unmet -= 1;
                if *unmet == 0 {
                    self.ready.insert(dependent);
                }
            }
        }
    }

    /// Whether every step was finished.
    pub fn is_done(&self) -> bool {
        self.unmet.is_empty()
    }
}
