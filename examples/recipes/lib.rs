//! Recipes, to be copied: queries that end with their context, at the server too. A file each.

pub mod sqlite;
pub mod sqlx;
pub mod tokio_postgres;
