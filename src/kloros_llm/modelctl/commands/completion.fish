# fish completion for modelctl; modelctl itself says what fits.
function __modelctl_complete
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l found (modelctl __complete $words[2..] (commandline --current-token --cut-at-cursor) 2>/dev/null)
    if test "$found[1]" = :files
        __fish_complete_path (commandline --current-token --cut-at-cursor)
    else if test (count $found) -gt 0
        printf '%s\n' $found
    end
end
complete --command modelctl --no-files --arguments '(__modelctl_complete)'
