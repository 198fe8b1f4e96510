#!/usr/bin/env bash
# For the Mac's Finder: a double click starts the page.
cd "$(dirname "$0")" && exec ./webui.sh
