//! Progress on standard error, fed by [`crate::base::events`] alone: bars on a terminal, one line per step otherwise.

use crate::base::events::{Event, Events};
use crate::base::ids::SourceName;
use crate::base::patient;
use crate::base::units::{human_duration, human_size};
use crate::cli::args::Global;
use crate::cli::output::printable;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const KNOWN: &str =
    "  {prefix:<16} {bar:24} {binary_bytes:>10} / {binary_total_bytes:<10} {binary_bytes_per_sec:>12}  {eta} left";
const UNKNOWN: &str = "  {prefix:<16} {spinner} {binary_bytes:>10}  {binary_bytes_per_sec:>12}  {elapsed}";

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    Lines { begins: bool },
    Bars,
}

struct Running {
    bar: Option<ProgressBar>,
    begun: Instant,
    bytes: u64,
}

struct Inner {
    mode: Mode,
    bars: MultiProgress,
    running: Mutex<HashMap<SourceName, Running>>,
}

/// Shows a run's events. Cloning shares the display.
#[derive(Clone)]
pub struct Progress(Arc<Inner>);

impl Progress {
    pub fn new(global: &Global) -> Self {
        let terminal = io::stderr().is_terminal();
        let mode = match (global.quiet, terminal) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Bars,
            (false, false) if global.json && global.verbose == 0 => Mode::Silent,
            (false, false) => Mode::Lines { begins: global.verbose > 0 },
        };
        let target = if mode == Mode::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let inner = Inner { mode, bars: MultiProgress::with_draw_target(target), running: Mutex::default() };
        Self(Arc::new(inner))
    }

    /// What a run sends its events to.
    pub fn events(&self) -> Events {
        let progress = self.clone();
        Events::new(move |event| progress.show(event))
    }

    /// Where logs go: standard error, without tearing the bars.
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.clone())
    }

    /// Takes the bars away before results are printed.
    pub fn finish(&self) {
        for (_, running) in self.running().drain() {
            if let Some(bar) = running.bar {
                bar.finish_and_clear();
            }
        }
        // A display that cannot be cleared is gone already.
        let _ = self.0.bars.clear();
    }

    fn running(&self) -> MutexGuard<'_, HashMap<SourceName, Running>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, text: &str) {
        match self.0.mode {
            Mode::Silent => {}
            Mode::Lines { .. } => {
                let _ = writeln!(patient::stderr(), "{}", printable(text));
            }
            Mode::Bars => {
                let _ = self.0.bars.println(printable(text));
            }
        }
    }

    fn show(&self, event: &Event) {
        match event {
            Event::SourceBegin { source, expected_bytes } => self.begin(source, *expected_bytes),
            Event::Bytes { source, bytes, .. } => {
                if let Some(running) = self.running().get_mut(source) {
                    running.bytes += bytes;
                    if let Some(bar) = &running.bar {
                        // The expectation is a guess of the last run; more bytes stretch it.
                        if bar.length().is_some_and(|length| running.bytes > length) {
                            bar.set_length(running.bytes);
                        }
                        bar.set_position(running.bytes);
                    }
                }
            }
            Event::SourceEnd { source, error } => self.end(source, error.as_deref()),
            Event::Step { text } => self.line(text),
            Event::Warning { source: Some(source), text } => self.line(&format!("warning: {source}: {text}")),
            Event::Warning { source: None, text } => self.line(&format!("warning: {text}")),
        }
    }

    fn begin(&self, source: &SourceName, expected_bytes: Option<u64>) {
        if self.0.mode == (Mode::Lines { begins: true }) {
            self.line(&format!("{source}: begins"));
        }
        let bar = (self.0.mode == Mode::Bars).then(|| {
            let (bar, template) = match expected_bytes.filter(|n| *n > 0) {
                Some(length) => (ProgressBar::new(length), KNOWN),
                None => (ProgressBar::new_spinner(), UNKNOWN),
            };
            let bar = self.0.bars.add(bar);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar.set_prefix(source.to_string());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        self.running().insert(source.clone(), Running { bar, begun: Instant::now(), bytes: 0 });
    }

    fn end(&self, source: &SourceName, error: Option<&str>) {
        let Some(running) = self.running().remove(source) else { return };
        if let Some(bar) = &running.bar {
            bar.finish_and_clear();
            self.0.bars.remove(bar);
        }
        let took = human_duration(running.begun.elapsed());
        match error {
            // What gave nothing has nothing to tell, unless somebody wants to hear it all.
            None if running.bytes == 0 && self.0.mode != (Mode::Lines { begins: true }) => {}
            None => self.line(&format!("{source}: {} in {took}", human_size(running.bytes))),
            Some(error) => self.line(&format!("{source}: failed after {took}: {error}")),
        }
    }
}

/// See [`Progress::log_writer`].
#[derive(Clone)]
pub struct LogWriter(Progress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.bars.suspend(|| patient::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        patient::stderr().flush()
    }
}
