//! Trees as steps of a transaction.

use super::super::extract::Report;
use super::super::files::{LISTING, TAR, Trees};
use super::super::placing::{Intent, Loss, Part, Placing, Scene, Stored, Unit};
use super::super::streams::Streams;
use super::super::{SourceError, project::Places};
use super::hands::Hands;
use super::job::{Base, Job};
use super::survey::{Survey, lines};
use crate::base::cancel::Cancel;
use crate::policy::model::{App, SourcePolicy, SourceSpec, Via};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A source of paths or volumes.
pub struct TreePlacing {
    app: App,
    source: SourcePolicy,
    never: Vec<PathBuf>,
    cancel: Cancel,
    hands: Hands,
}

/// What a step needs: kept in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Task {
    job: Job,
    /// Volumes that only the engine reaches, by the base's folder in the helper container.
    #[serde(default)]
    through: Option<Through>,
}

/// Through a helper container: its mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Through {
    /// Volumes and where they are mounted; without any, the host's root.
    pub volumes: Vec<(String, PathBuf)>,
}

impl TreePlacing {
    pub fn new(app: &App, source: &SourcePolicy, never: Vec<PathBuf>, cancel: &Cancel) -> Self {
        Self {
            app: app.clone(),
            source: source.clone(),
            never,
            cancel: cancel.clone(),
            hands: Hands::new(Places::new(app, cancel)),
        }
    }

    /// The volumes that an intent is of, as the policy calls them.
    pub fn volumes_of(intent: &Intent) -> Vec<String> {
        let bases = task_of(intent).map(|task| task.job.bases).unwrap_or_default();
        bases.into_iter().map(|base| base.prefix).filter(|name| !name.is_empty()).collect()
    }

    fn task(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Task, SourceError> {
        let mut job = Job {
            id: scene.id.to_owned(),
            source: scene.name.to_string(),
            bases: vec![Base { prefix: String::new(), dir: "/".into() }],
            named: Vec::new(),
            trusted: Vec::new(),
            strays: 0,
            outside: below_root(&self.app.root).into_iter().collect(),
            paths: part.paths.iter().filter_map(|p| below_root(p)).collect(),
            exact: part.exact,
            privileged: part.privileged,
            exclude: Vec::new(),
            never: self.never.clone(),
            one_file_system: false,
            stages: Vec::new(),
            folder: scene.folder.to_owned(),
        };
        if job.paths.len() < part.paths.len() {
            return Err(SourceError::hint(
                "the whole of / cannot be put back",
                "name a path below it, or leave it out",
            ));
        }
        let mut through = None;
        match &self.source.spec {
            SourceSpec::Files(spec) => {
                job.exclude.clone_from(&spec.exclude);
                job.one_file_system = spec.one_file_system;
                job.named = strings(&stored.facts["paths"]).chain(literal(&spec.paths)).collect();
                job.trusted = trusted(&spec.paths).collect();
                through = via(spec.via);
            }
            SourceSpec::Env(spec) => {
                let files = stored.facts["files"].as_array().into_iter().flatten();
                job.named = files.flat_map(|f| strings(&f["path"])).chain(literal(&spec.paths)).collect();
                let root = self.app.root.display().to_string();
                job.trusted = trusted(&spec.paths).chain(trusted(&[root])).collect();
            }
            SourceSpec::Certificates(spec) => {
                job.named = literal(&spec.paths).collect();
                through = via(spec.via);
            }
            SourceSpec::Nginx(spec) => {
                let outside = strings(&stored.facts["included_outside"]);
                job.named = literal(&spec.paths).chain(outside).collect();
                through = via(spec.via);
            }
            SourceSpec::Volume(spec) => {
                job.exclude.clone_from(&spec.exclude);
                (job.bases, through) = self.volumes(&spec.volumes)?;
                job.named = job.bases.iter().map(|b| b.prefix.clone().into()).collect();
                job.outside.clear();
            }
            _ => return Err(SourceError::problem("this source has no tree")),
        }
        job.named = job.named.iter().filter_map(|p| below_root(p).or(Some(p.clone()))).collect();
        Ok(Task { job, through })
    }

    /// Where volumes lie. All of them are reached in one way: directly where this process may write to each.
    fn volumes(&self, labels: &[String]) -> Result<(Vec<Base>, Option<Through>), SourceError> {
        let trees = Trees::new(&self.app, &self.cancel);
        let (mut direct, mut helped, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (at, label) in labels.iter().enumerate() {
            let volume = trees.volume(label)?;
            let writable = |p: &PathBuf| {
                use rustix::fs::{Access, AtFlags, CWD};
                let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
                rustix::fs::accessat(CWD, p, wanted, AtFlags::EACCESS).is_ok()
            };
            if let Some(dir) = volume.mount_point.and_then(|p| p.canonicalize().ok()).filter(writable) {
                direct.push(Base { prefix: label.clone(), dir });
            }
            let dir = PathBuf::from(format!("/lifeboat/volumes/{at}"));
            helped.push(Base { prefix: label.clone(), dir: dir.clone() });
            names.push((volume.name, dir));
        }
        if direct.len() == labels.len() {
            return Ok((direct, None));
        }
        Ok((helped, Some(Through { volumes: names })))
    }

    /// Data that people have written; what an administrator writes (env files, certificates, nginx) is none.
    fn losses(&self, files: u64) -> Vec<Loss> {
        let trees = match &self.source.spec {
            SourceSpec::Files(spec) => &spec.paths,
            SourceSpec::Volume(spec) => &spec.volumes,
            _ => return Vec::new(),
        };
        match files {
            0 => Vec::new(),
            _ => vec![Loss {
                what: trees.join(", "),
                unit: Unit::Files,
                more: i64::try_from(files).unwrap_or(i64::MAX),
                exact: true,
            }],
        }
    }

    fn intent(&self, scene: &Scene<'_>, task: &Task, survey: Survey) -> Result<Intent, SourceError> {
        let mut lines = survey.lines(task.job.exact);
        if survey.replaced.count + survey.newer.count > 0 {
            let stages: Vec<String> = survey.stages.iter().map(|s| s.display().to_string()).collect();
            lines.push(format!("what is replaced stays in {} of {}", task.job.staging_name(), stages.join(", ")));
        }
        let state = serde_json::to_value(task).map_err(|e| SourceError::problem(e.to_string()))?;
        Ok(Intent {
            source: scene.name.clone(),
            kind: self.source.spec.kind().to_owned(),
            lines,
            warnings: survey.warnings,
            room: survey.room,
            losses: self.losses(survey.lost_files),
            restarts: Vec::new(),
            state,
        })
    }
}

fn task_of(intent: &Intent) -> Result<Task, SourceError> {
    serde_json::from_value(intent.state.clone()).map_err(|e| {
        SourceError::problem(format!("what was planned for source {:?} cannot be read: {e}", intent.source))
    })
}

fn via(via: Via) -> Option<Through> {
    (via == Via::Docker).then(|| Through { volumes: Vec::new() })
}

/// A path as the tar has it; nothing for `/` itself.
fn below_root(path: &Path) -> Option<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|b| *b != b'/')?;
    let end = bytes.iter().rposition(|b| *b != b'/')? + 1;
    Some(PathBuf::from(OsStr::from_bytes(&bytes[start..end])))
}

fn strings(value: &serde_json::Value) -> impl Iterator<Item = PathBuf> + '_ {
    let one = value.as_str().into_iter();
    let many = value.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
    one.chain(many).map(PathBuf::from)
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// Paths that are no patterns, as they are written and where they really lie.
fn literal(paths: &[String]) -> impl Iterator<Item = PathBuf> + '_ {
    let plain = paths.iter().filter(|p| !is_pattern(p)).map(PathBuf::from);
    plain.flat_map(|p| [p.canonicalize().ok(), Some(p)]).flatten()
}

/// Where paths and patterns can lead, as the tar has it: patterns up to their first special name.
fn trusted(paths: &[String]) -> impl Iterator<Item = PathBuf> + '_ {
    let plain = |p: &String| -> PathBuf {
        Path::new(p).components().take_while(|c| !is_pattern(&c.as_os_str().to_string_lossy())).collect()
    };
    let each = paths.iter().map(plain).flat_map(|p| [p.canonicalize().ok(), Some(p)]).flatten();
    each.filter_map(|p| below_root(&p))
}

/// All paths of a captured tree, as absolute ones.
pub fn listed(streams: &dyn Streams) -> Result<Vec<PathBuf>, SourceError> {
    let mut paths = Vec::new();
    lines(&mut Tape(streams).listing()?, &mut |_, path| {
        paths.push(Path::new("/").join(OsStr::from_bytes(&path)));
        Ok(())
    })?;
    Ok(paths)
}

/// The one tar of a source, and its listing.
pub struct Tape<'a>(pub &'a dyn Streams);

impl Tape<'_> {
    pub fn tar(&self) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        self.open(TAR)
    }

    pub fn listing(&self) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        self.open(LISTING)
    }

    pub fn listing_bytes(&self) -> Result<u64, SourceError> {
        Ok(self.0.info(LISTING)?.length)
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        self.0.info(name)?;
        self.0.open(name).map_err(|source| SourceError::File { action: "read", path: name.into(), source })
    }
}

impl Placing for TreePlacing {
    fn plan(&self, scene: &Scene<'_>, stored: &Stored<'_>, part: &Part) -> Result<Intent, SourceError> {
        if !part.tables.is_empty() || part.database_as.is_some() {
            return Err(SourceError::problem("tables and databases are of sources of kind postgres"));
        }
        if part.flush {
            return Err(SourceError::problem("only a data store can become empty, not a tree of files"));
        }
        let mut task = self.task(scene, stored, part)?;
        if stored.streams.list().is_empty() {
            return self.intent(scene, &task, Survey::default());
        }
        let survey = self.hands.survey(&task.job, task.through.as_ref(), &Tape(stored.streams), scene.cancel)?;
        task.job.stages.clone_from(&survey.stages);
        task.job.strays = survey.strays.count;
        self.intent(scene, &task, survey)
    }

    fn prepare(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        let task = task_of(intent)?;
        if stored.streams.list().is_empty() {
            return Ok(());
        }
        let tape = Tape(stored.streams);
        self.hands.make(&task.job, task.through.as_ref(), &tape, scene.cancel)
    }

    fn settle(&self, scene: &Scene<'_>, stored: &Stored<'_>, intent: &Intent) -> Result<(), SourceError> {
        let task = task_of(intent)?;
        if task.job.stages.is_empty() {
            return Ok(());
        }
        let tape = Tape(stored.streams);
        self.hands.settle(&task.job, task.through.as_ref(), &tape, scene.cancel)
    }

    fn switch(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let task = task_of(intent)?;
        if task.job.stages.is_empty() {
            return Ok(());
        }
        self.hands.switch(&task.job, task.through.as_ref(), scene.cancel)
    }

    fn confirm(&self, _: &Scene<'_>, _: &Intent) -> Result<(), SourceError> {
        Ok(())
    }

    fn differs(&self, _: &Scene<'_>, intent: &Intent) -> Result<Option<Report>, SourceError> {
        self.hands.differs(&task_of(intent)?.job).map(Some)
    }

    fn back(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let task = task_of(intent)?;
        let notes = self.hands.back(&task.job, task.through.as_ref(), scene.cancel)?;
        notes.into_iter().for_each(|n| scene.events.warn(scene.name, n));
        Ok(())
    }

    fn discard_new(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let task = task_of(intent)?;
        self.hands.discard_new(&task.job, task.through.as_ref(), scene.cancel)
    }

    fn discard_old(&self, scene: &Scene<'_>, intent: &Intent) -> Result<(), SourceError> {
        let task = task_of(intent)?;
        self.hands.discard_old(&task.job, task.through.as_ref(), scene.cancel)
    }
}
