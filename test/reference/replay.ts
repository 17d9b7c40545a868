/** Compares replays of the product, page by page, with what the model acknowledged. */
import { ORIGIN_HEADERS, queueName } from '@sluice/protocol'
import { OPERATOR, type Bench } from './bench.js'
import { contentOf } from './records.js'
import { same } from './same.js'
import { Difference, type ModelMessage } from './state.js'

/**
 * Replays the acknowledged messages that must be retained, in the order of their offsets; other acknowledged messages
 * may be replayed as well. `between` decides what happens after a page: nothing, a crash, or the loss of the answer.
 * After a loss the page is requested again, which copies its messages a second time. Returns the number of copied
 * messages.
 */
export async function replay(
  bench: Bench,
  name: string,
  to: string,
  between: () => 'crash' | 'lost' | 'nothing' = () => 'nothing',
): Promise<number> {
  await bench.endTurn()
  const { done, options } = bench.model.queue(name)
  const must = done
    .filter(({ atMs, isRetained }) => isRetained && atMs > bench.nowMs - options.retainAgeMs)
    .map(({ message }) => message.offset)
  const known = new Map(done.map(({ message }) => [message.offset, message]))
  const came: number[] = []
  let replayed = 0
  for (let cursor: string | null | undefined; cursor !== null;) {
    const first = await replayPage(bench, name, to, cursor, known)
    let next = first.cursor
    let after = between()
    if (after === 'lost') {
      // Requests the page again, sometimes after a crash, so that the broker has lost the state that it kept for the
      // page.
      const crashes = replayed % 2 === 1
      if (crashes) await bench.crash()
      const again = await replayPage(bench, name, to, cursor, known)
      // Messages whose retention is over can be missing from the second page.
      const kept = (offsets: readonly number[]): number[] => offsets.filter((offset) => must.includes(offset))
      const both = Math.min(kept(again.offsets).length, kept(first.offsets).length)
      same(
        `a page of a replay of ${name} that is requested again`,
        kept(again.offsets).slice(0, both),
        kept(first.offsets).slice(0, both),
      )
      replayed += again.offsets.length
      next = again.cursor
      bench.count('pages replayed twice')
      after = between()
    }
    came.push(...first.offsets)
    replayed += first.offsets.length
    if (after === 'crash') {
      await bench.crash()
      bench.count('crashes between pages of a replay')
    }
    cursor = next
  }
  same(`messages that a replay of ${name} copied twice`, came.length, new Set(came).size)
  const all = new Set(came)
  same(
    `messages of ${name} that were not replayed`,
    must.filter((offset) => !all.has(offset)),
    [],
  )
  bench.count('messages replayed', replayed)
  await bench.endTurn()
  return replayed
}

// Replays one page; returns the offsets of the originals, and the cursor of the next page.
async function replayPage(
  bench: Bench,
  name: string,
  to: string,
  cursor: string | undefined,
  known: ReadonlyMap<number, ModelMessage>,
): Promise<{ readonly offsets: number[]; readonly cursor: string | null }> {
  await bench.endTurn()
  bench.begin()
  const target = bench.model.queue(to)
  const from = target.next
  const page = await bench.wait(
    bench.broker.replays.page(
      {
        name: queueName(name),
        fromOffset: cursor === undefined ? 0 : undefined,
        fromMs: undefined,
        untilMs: undefined,
        limit: 3,
        cursor,
        filter: {},
        to: to === name ? undefined : queueName(to),
        dryRun: false,
      },
      OPERATOR,
    ),
  )
  same('messages replayed', page.replayed, page.matched)
  const { messages } = await bench.wait(
    bench.broker.operator.peek(
      { name: queueName(to), state: undefined, from, limit: 1000, filter: {} },
      OPERATOR,
    ),
  )
  same('copies that a replay made', messages.length, page.replayed)
  const offsets: number[] = []
  for (const { record, offset } of messages) {
    const content = contentOf(record, 0)
    same('offset of a replayed message', offset, target.next)
    same(
      'times of a replayed message',
      [content.delayMs, content.atMs, content.ttlMs],
      [undefined, undefined, undefined],
    )
    const origin = Number(content.headers[ORIGIN_HEADERS.offset])
    const original = known.get(origin)
    if (original === undefined || content.headers[ORIGIN_HEADERS.queue] !== name)
      throw new Difference(`message ${origin} of ${name} was replayed but never acknowledged`)
    const { key, id, priority, body } = original.content
    same(
      `replayed message ${origin} of ${name}`,
      { key: content.key, id: content.id, priority: content.priority, body: content.body },
      { key, id, priority, body },
    )
    offsets.push(origin)
    bench.model.replayed(to, content)
  }
  await bench.endTurn()
  return { offsets, cursor: page.cursor }
}
