#!/usr/bin/env bash
# For the Mac's Finder: double-click to start the page.
cd "$(dirname "$0")" && exec ./webui.sh
