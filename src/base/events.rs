//! The one stream of events that feeds progress bars, JSON lines, history and logs: each thing is counted once.

use crate::base::ids::SourceName;
use serde::Serialize;
use std::sync::Arc;

/// Something that happened in a run.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A source's capture (or restore, or reading for verification) begins. `expected_bytes` is a guess from the last run.
    SourceBegin { source: SourceName, expected_bytes: Option<u64> },
    /// More plain bytes of a source have passed; `reused` when they were taken over without being read.
    Bytes { source: SourceName, bytes: u64, reused: bool },
    /// A source ended; `error` is its one-line cause when it failed.
    SourceEnd { source: SourceName, error: Option<String> },
    /// One step of a run, in words for people.
    Step { text: String },
    /// Something that a person should know but that fails nothing.
    Warning { source: Option<SourceName>, text: String },
}

/// Where events go. Cloning shares the receiver.
#[derive(Clone)]
pub struct Events(Arc<dyn Fn(&Event) + Send + Sync>);

impl Events {
    /// Sends every event to `receiver`, from whichever thread it happens on.
    pub fn new(receiver: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receiver))
    }

    /// Nobody listens.
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    /// Sends one event.
    pub fn send(&self, event: Event) {
        (self.0)(&event);
    }

    /// Sends a [`Event::Step`].
    pub fn step(&self, text: impl Into<String>) {
        self.send(Event::Step { text: text.into() });
    }

    /// Sends a [`Event::Warning`] about a source.
    pub fn warn(&self, source: &SourceName, text: impl Into<String>) {
        self.send(Event::Warning { source: Some(source.clone()), text: text.into() });
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}
