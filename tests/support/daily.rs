//! A schedule under which nothing comes due by itself while a test runs, whatever the time of the day.

/// A daily time of this machine half a day away, as cron writes it.
pub fn half_a_day_away() -> String {
    (chrono::Local::now() + chrono::TimeDelta::hours(12)).format("0 %-H * * *").to_string()
}
