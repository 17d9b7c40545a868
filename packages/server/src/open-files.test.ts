import { expect, test } from 'vitest'
import { connectionsFor, openFilesMax } from './open-files.js'

test('connections leave 256 files for the rest of the broker, or half of a very low limit', () => {
  expect(connectionsFor(10_000, undefined)).toBe(10_000)
  expect(connectionsFor(10_000, 1_048_576)).toBe(10_000)
  expect(connectionsFor(10_000, 10_256)).toBe(10_000)
  expect(connectionsFor(10_000, 10_255)).toBe(9_999)
  expect(connectionsFor(10_000, 1_024)).toBe(768)
  expect(connectionsFor(10_000, 512)).toBe(256)
  expect(connectionsFor(10_000, 61)).toBe(30)
  expect(connectionsFor(10_000, 1)).toBe(1)
  expect(connectionsFor(5, 61)).toBe(5)
})

test.runIf(process.platform === 'linux')('the limit of open files is known on Linux', () => {
  expect(openFilesMax()).toBeGreaterThan(16)
})
