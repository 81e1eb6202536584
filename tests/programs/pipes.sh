# Loops that talk through pipes, and a shell that waits for them. Nothing may be lost, doubled or torn.
cd /data || exit 2
trap 'touch stop' USR1
(
    i=0
    while [ ! -e stop ]; do
        i=$((i + 1))
        echo "line $i of the first loop"
    done
    echo "end $i"
) | sed 's/first/second/' | (
    last=0
    while read -r word n rest; do
        if [ "$word" = end ]; then
            [ "$n" = "$last" ] || echo "ended with $n, counted $last"
        else
            [ "$n" = $((last + 1)) ] || echo "line $n after $last"
            [ "$rest" = "of the second loop" ] || echo "torn: $rest"
            last=$n
            echo "$n" > count
        fi
    done
    echo "$last" > last
) > problems &
loops=$!
mkfifo fifo
cat < fifo > received &
reader=$!
exec 5> fifo
echo "into the fifo before" >&5
before=0
while [ "$before" -lt 100 ]; do
    read -r before < count 2> /dev/null
    before=${before:-0}
done
echo ready
# It is interrupted by the signal, whose trap then runs.
while [ ! -e stop ]; do wait "$loops"; done
wait "$loops"
[ "$(cat last)" -ge "$before" ] || echo "counted $(cat last), was at $before" >> problems
echo "into the fifo after" >&5
exec 5>&-
wait "$reader"
[ "$(cat received)" = "into the fifo before
into the fifo after" ] || cat received >> problems
cat problems
[ -s problems ] || echo ok
