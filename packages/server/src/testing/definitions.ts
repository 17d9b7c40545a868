/** Reads definitions from the entries of a log into a plain map, for comparison with a recovered broker. */
import { BATCH_HEADER_BYTES, BATCH_TYPE, batchLength, batchQueueId, batchType } from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import { FACT, readFacts } from '../queue/index.js'
import type { Defined } from '../state/definitions.js'

export type PlainDefinitions = Map<number, Defined>

/** Applies the facts of an entry. */
export function applyDefinitions(known: PlainDefinitions, entry: Uint8Array): void {
  for (const at of entryBatches(entry, 0)) {
    if (batchType(entry, at) !== BATCH_TYPE.facts) continue
    readFacts(entry, at + BATCH_HEADER_BYTES, at + batchLength(entry, at), (fact) => {
      const { kind, offset: id, death, count: owner, text, timeMs: number } = fact
      if (kind === FACT.define) known.set(id, { kind: death as Defined['kind'], owner, text, number })
      else if (kind === FACT.undefine) known.delete(id)
      else if (kind === FACT.delete)
        for (const [id, { owner }] of known) if (owner === batchQueueId(entry, at)) known.delete(id)
    })
  }
}
