import { describe, expect, test } from 'vitest'
import { defaultMemoryBytes } from '../memory.js'
import { UsageError } from './failure.js'
import { SETTING_NAMES, readSettings, unknownVariables, variableOf, type SettingName } from './settings.js'

function refused(flags: Record<string, unknown>, environment: Record<string, string> = {}): UsageError {
  try {
    readSettings(flags, environment)
  } catch (error) {
    if (error instanceof UsageError) return error
    throw error
  }
  throw new Error('the settings were accepted')
}

test('defaults are valid values of their settings', () => {
  expect(readSettings({}, {})).toEqual({
    memory: defaultMemoryBytes(),
    port: 7420,
    host: '127.0.0.1',
    'data-dir': './data',
    'segment-bytes': 64 * 1024 * 1024,
    'max-message-bytes': 1024 * 1024,
    'max-connections': 10_000,
    heartbeat: 10_000,
    'log-level': 'info',
  })
  expect(SETTING_NAMES).toHaveLength(9)
})

test('a flag overrides its variable, which overrides the default', () => {
  const environment = { SLUICE_PORT: '1', SLUICE_DATA_DIR: '/var/sluice', SLUICE_HOST: '' }
  expect(readSettings({ port: '0' }, environment)).toMatchObject({
    port: 0,
    'data-dir': '/var/sluice',
    host: '127.0.0.1',
  })
})

describe('bounds', () => {
  const good: readonly (readonly [SettingName, string, unknown])[] = [
    ['port', '65535', 65_535],
    ['host', '127.9.9.9', '127.9.9.9'],
    ['host', '::1', '::1'],
    ['host', 'localhost', 'localhost'],
    ['segment-bytes', '1MiB', 2 ** 20],
    ['segment-bytes', '1GiB', 2 ** 30],
    ['max-message-bytes', '15MiB', 15 * 1024 * 1024],
    ['max-message-bytes', '1', 1],
    ['max-connections', '1', 1],
    ['memory', '192MiB', 192 * 1024 ** 2],
    ['memory', '2gb', 2e9],
    ['heartbeat', '100ms', 100],
    ['heartbeat', '5m', 300_000],
    ['log-level', 'silent', 'silent'],
  ]
  test.each(good)('--%s %s', (name, text, value) => {
    expect(readSettings({ [name]: text }, {})[name]).toBe(value)
  })

  const bad: readonly (readonly [SettingName, unknown])[] = [
    ['port', '65536'],
    ['port', '-1'],
    ['port', '7420x'],
    ['port', ''],
    ['port', false],
    ['host', 'a b'],
    ['data-dir', ''],
    ['segment-bytes', '1020KiB'],
    ['segment-bytes', '1025MiB'],
    ['segment-bytes', '64 MiB'],
    ['segment-bytes', '64ib'],
    ['segment-bytes', '1000kb'],
    ['max-message-bytes', '0'],
    ['max-message-bytes', '15729KiB'],
    ['max-connections', '0'],
    ['memory', '191MiB'],
    ['memory', '50%'],
    ['heartbeat', '99ms'],
    ['heartbeat', '100'],
    ['heartbeat', '301s'],
    ['heartbeat', 'soon'],
    ['log-level', 'loud'],
  ]
  test.each(bad)('--%s %s is refused', (name, value) => {
    expect(refused({ [name]: value }).message).toContain(`--${name} is `)
    if (typeof value === 'string' && value !== '') {
      expect(refused({}, { [variableOf(name)]: value }).message).toContain(`${variableOf(name)} is `)
    }
  })
})

test.each(['0.0.0.0', '::', '10.0.0.1', 'example.com', '127.0.0.1.example.com'])(
  '%s is refused, because it is not a loopback address',
  (host) => {
    expect(refused({ host }).message).toContain('no authentication')
  },
)

test('a variable set by Kubernetes for a service named sluice is explained', () => {
  expect(refused({}, { SLUICE_PORT: 'tcp://10.0.0.1:7420' }).advice).toContain('Kubernetes')
  expect(unknownVariables({ SLUICE_SERVICE_HOST: '', SLUICE_PORT_7420_TCP: '', SLUICE_URL: '' })).toEqual([])
})

test('unknown variables with the prefix are returned, with the likely intended setting', () => {
  expect(unknownVariables({ SLUICE_DATADIR: '', SLUICE_COLOUR: '', SLUICE_LONG: '', HOME: '' })).toEqual([
    { name: 'SLUICE_DATADIR', meant: 'SLUICE_DATA_DIR' },
    { name: 'SLUICE_COLOUR', meant: undefined },
    { name: 'SLUICE_LONG', meant: undefined },
  ])
})
