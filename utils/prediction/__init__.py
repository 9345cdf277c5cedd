"""From prompts on an image to masks on its grid."""
