import { QUEUE_OPTION_DEFAULTS, type QueueOptions } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { changeOf } from './options.js'

const NOTHING = { forgetsAfterMs: undefined, changesRules: false, changesRate: false, routesDead: false }

function change(before: Partial<QueueOptions>, after: Partial<QueueOptions>): object {
  return changeOf({ ...QUEUE_OPTION_DEFAULTS, ...before }, { ...QUEUE_OPTION_DEFAULTS, ...after })
}

test('a change of the window forgets the ids that the shorter window forgets', () => {
  expect(change({ dedupWindowMs: 100 }, { dedupWindowMs: 100 })).toEqual(NOTHING)
  expect(change({ dedupWindowMs: 100 }, { dedupWindowMs: 500 })).toEqual({ ...NOTHING, forgetsAfterMs: 100 })
  expect(change({ dedupWindowMs: 500 }, { dedupWindowMs: 0 })).toEqual({ ...NOTHING, forgetsAfterMs: 0 })
})

test('a change of the key options rebuilds the lines of the keys', () => {
  expect(change({ keyConcurrency: 1 }, { keyConcurrency: 2 })).toEqual({ ...NOTHING, changesRules: true })
  expect(change({ onFail: 'block' }, { onFail: 'skip' })).toEqual({ ...NOTHING, changesRules: true })
  expect(change({}, { keyRateMessages: 1 })).toEqual({ ...NOTHING, changesRules: true })
  expect(change({}, { ratePerMs: 1 })).toEqual({ ...NOTHING, changesRate: true })
})

test('dead messages are routed when the dead-letter queue changes', () => {
  expect(change({}, { deadLetter: 'dlq' })).toEqual({ ...NOTHING, routesDead: true })
  expect(change({ maxMessages: 1 }, { maxMessages: 2 })).toEqual(NOTHING)
})
