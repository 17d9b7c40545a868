import { expect, it } from 'vitest'
import { leaseLost } from './losses.js'
import { Watchers, type Watcher } from './watchers.js'

function watcherOf(tag: number, aborted: number[], also?: () => void): Watcher {
  return {
    isAmong: (tags) => tags.has(tag),
    abort: () => {
      aborted.push(tag)
      also?.()
    },
  }
}

it('aborts the watchers of lost messages, each once', () => {
  const watchers = new Watchers()
  const aborted: number[] = []
  for (const tag of [1, 2, 3]) watchers.add(watcherOf(tag, aborted))
  watchers.abort(new Set([1, 3, 4]), leaseLost())
  watchers.abort(new Set([1]), leaseLost())
  expect(aborted).toEqual([1, 3])
  watchers.abortAll(leaseLost())
  expect(aborted).toEqual([1, 3, 2])
  expect(watchers.takeAll()).toEqual([])
})

it('aborts no watcher twice when a listener aborts all', () => {
  const watchers = new Watchers()
  const aborted: number[] = []
  for (const tag of [1, 2]) watchers.add(watcherOf(tag, aborted, () => watchers.abortAll(leaseLost())))
  watchers.abort(new Set([1]), leaseLost())
  expect(aborted).toEqual([1, 2])
})
